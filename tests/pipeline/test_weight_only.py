"""Weights alone in 4 or 8 bits: the file shrinks, agrees with torch, and the checkpoint loads."""

from types import ModuleType

import onnx
import pytest
import torch

import paredown
from paredown import Quantize, Task, Weights
from tests.conftest import SmallResNet
from tests.quantization.models import relative


@pytest.fixture(scope="module")
def stories(shared_data: ModuleType) -> Task:
    """stories260K on random tokens."""
    tokens = torch.randint(0, 512, (16, 24), generator=torch.Generator().manual_seed(0))
    batches = [(part, part) for part in tokens.split(8)]
    return Task(shared_data.TinyLlama().eval(), (tokens[:4],), batches, batches, loss=lambda o, _: o.mean(), metric=_mean)


def _mean(output: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
    return output.mean((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bits, size", [(4, 0.2), (8, 0.33)])
def test_a_language_model_shrinks_and_agrees_with_its_file(
    stories: Task, target: str, bits: int, size: float, tmp_path: object
) -> None:
    whole = paredown.export(stories.model, stories, target=target, path=f"{tmp_path}/whole.onnx")
    model = paredown.quantize(stories, Quantize(kind="weight_only", bits=bits, weights=Weights(embeddings=True)))
    small = paredown.export(model, stories, target=target, path=f"{tmp_path}/small.onnx")
    assert small.precision == f"int{bits}" and small.size_bytes < size * whole.size_bytes


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq", "hqq"])
def test_every_method_reaches_the_file(stories: Task, method: str, tmp_path: object) -> None:
    model = paredown.quantize(stories, Quantize(kind="weight_only", bits=4, weights=Weights(method=method)))  # type: ignore[arg-type]
    assert 0.01 < relative(stories.model, model, stories.inputs[0]) < 0.2  # type: ignore[index,arg-type]  # a tuple
    assert paredown.export(model, stories, path=f"{tmp_path}/m.onnx").precision == "int4"


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_rows_that_are_no_multiple_of_the_group_agree_too(pattern_task: Task, target: str, tmp_path: object) -> None:
    model = paredown.quantize(pattern_task, Quantize(kind="weight_only", bits=4))  # rows of 9, 144 and 16 numbers
    path = f"{tmp_path}/m.onnx"
    assert paredown.export(model, pattern_task, target=target, path=path).precision == "int4"
    kinds = {t.data_type for t in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT4 in kinds


def test_a_checkpoint_loads_into_a_fresh_model(pattern_task: Task, tmp_path: object) -> None:
    model = paredown.quantize(pattern_task, Quantize(kind="weight_only", bits=4, weights=Weights(group=64)))
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), SmallResNet(16))
    x = pattern_task.inputs[0]  # type: ignore[index]  # a tuple
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_rows_narrower_than_the_group_are_not_filled_up(tmp_path: object) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 40)
    batches = [(x, torch.zeros(4, dtype=torch.int64))]
    task = Task(torch.nn.Sequential(torch.nn.Linear(40, 512), torch.nn.Linear(512, 3)).eval(), (x,), batches, batches)
    model = paredown.quantize(task, Quantize(kind="weight_only", bits=4, weights=Weights(group=128)))
    artifact = paredown.export(model, task, path=f"{tmp_path}/m.onnx")
    sizes = [tensor.dims[0] * tensor.dims[1] for tensor in onnx.load(artifact.path).graph.initializer if len(tensor.dims) == 2]
    assert 512 * 64 in sizes and 512 * 128 not in sizes
