"""One file against another: what can't be compared is said, what can is compared whatever its type."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from paredown.core.errors import ArtifactError
from paredown.pipeline.compare import compare_files


def file_of(
    path: Path,
    operator: str,
    *,
    batch: str | int = "batch",
    length: int = 4,
    kinds: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
) -> Path:
    """An operator of `x` (batch, length) and itself. kinds: of its input and its output."""
    values = [helper.make_tensor_value_info(name, kind, [batch, length]) for name, kind in zip("xy", kinds, strict=True)]
    graph = helper.make_graph([helper.make_node(operator, ["x", "x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_a_latency_is_never_said_of_another_batch_than_the_files(tmp_path: Path) -> None:
    file = file_of(tmp_path / "one.onnx", "Add", batch=1)
    assert compare_files(file, file, batch=1, pairs=50).target.batch == 1
    with pytest.raises(ArtifactError, match="batches of 8, got a batch fixed at 1; pass --batch 1"):
        compare_files(file, file, batch=8)


def test_outputs_that_are_true_or_false_are_compared(tmp_path: Path) -> None:
    less, equal = (
        file_of(tmp_path / f"{name}.onnx", name, kinds=(TensorProto.FLOAT, TensorProto.BOOL)) for name in ("Less", "Equal")
    )
    assert compare_files(equal, equal, pairs=50).difference == 0
    found = compare_files(less, equal, pairs=50)
    assert found.difference == 1 and (found.file, found.against) == ("Less.onnx", "Equal.onnx")


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("int8", "float"):
        (tmp_path / folder).mkdir()
        file_of(tmp_path / folder / "model.onnx", "Add")
    found = compare_files(tmp_path / "int8" / "model.onnx", tmp_path / "float" / "model.onnx", pairs=50)
    assert (found.file, found.against) == ("int8/model.onnx", "float/model.onnx")


def test_files_whose_inputs_differ_in_type_or_shape_are_refused(tmp_path: Path) -> None:
    file = file_of(tmp_path / "one.onnx", "Add")
    longer = file_of(tmp_path / "longer.onnx", "Add", length=5)
    whole = file_of(tmp_path / "whole.onnx", "Add", kinds=(TensorProto.INT64, TensorProto.INT64))
    with pytest.raises(ArtifactError, match=r"got x float32 \(any, 5\) and x float32 \(any, 4\)"):
        compare_files(longer, file)
    with pytest.raises(ArtifactError, match="got x int64"):
        compare_files(whole, file)
