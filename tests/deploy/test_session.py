import pathlib
import pickle
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paredown.core.errors import ArtifactError, BatchError, MissingExtraError, TargetError
from paredown.core.target import Target
from paredown.deploy.onnxruntime import OnnxRuntimeSession, options
from paredown.deploy.openvino import OpenVinoSession
from paredown.deploy.session import inputs_for, load, recorded_target

RUNTIMES = ["onnxruntime", "openvino"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_positional_and_named_calls_agree_with_torch(floating, runtime) -> None:
    session = load(floating.path, runtime)
    x = floating.inputs[0].numpy()
    np.testing.assert_array_equal(session(x), session(x=x))
    np.testing.assert_allclose(session(x), floating.model(floating.inputs[0]).detach().numpy(), atol=1e-5)
    assert session.input_names == ("x",)
    assert session.output_names == ("output",)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_results_are_not_overwritten_by_the_next_call(floating, runtime) -> None:
    session = load(floating.path, runtime)
    x = floating.inputs[0].numpy()
    first = session(x)
    kept = first.copy()
    session(x * 2)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_arrays_that_are_not_contiguous_are_read_rightly(floating, runtime) -> None:
    session = load(floating.path, runtime)
    x = floating.inputs[0].numpy()
    np.testing.assert_allclose(session(x.transpose(0, 1, 3, 2)), session(x.transpose(0, 1, 3, 2).copy()))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_reads_stored_integer_weights_stays_in_float(runtime, tmp_path) -> None:
    draw = np.random.default_rng(0)
    weight, scale = draw.integers(-127, 128, (10, 512), dtype=np.int8), draw.uniform(0.001, 0.002, 10).astype(np.float32)
    x = draw.normal(size=(2, 512)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"], axis=0),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 512), ("y", 10))]
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(scale, "scale")]
    graph = helper.make_graph(nodes, "stored", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "stored.onnx")
    want = x @ (weight * scale[:, None]).T
    assert np.abs(load(tmp_path / "stored.onnx", runtime)(x) - want).max() <= 1e-5 * np.abs(want).max()


def test_runtime_is_taken_from_the_metadata(floating, copy_of) -> None:
    assert isinstance(load(floating.path), OnnxRuntimeSession)

    def change(model) -> None:
        next(e for e in model.metadata_props if e.key == "paredown.runtime").value = "openvino"

    assert isinstance(load(copy_of(floating.path, change)), OpenVinoSession)


def test_target_given_wins_over_the_metadata(floating) -> None:
    target = Target("openvino", batch=2, threads=1)
    assert load(floating.path, target).target == target


def test_recorded_threads_are_cut_to_this_machine(floating, copy_of) -> None:
    def change(model) -> None:
        next(e for e in model.metadata_props if e.key == "paredown.threads").value = "100000"

    assert recorded_target(copy_of(floating.path, change)).threads < 100000


def test_file_that_is_not_ours_runs_in_onnx_runtime(floating, copy_of) -> None:
    session = load(copy_of(floating.path, lambda model: model.ClearField("metadata_props")))
    assert session.target == Target()


def test_sessions_pin_their_threads_and_do_not_spin() -> None:
    chosen = options(Target(threads=1))
    assert (chosen.intra_op_num_threads, chosen.inter_op_num_threads) == (1, 1)
    assert chosen.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("target", [None, *RUNTIMES])
@pytest.mark.parametrize("content", ["missing", "empty", "text", "truncated", "pickle", "xml"])
def test_file_that_is_no_model_is_an_artifact_error(content, target, floating, tmp_path, capfd) -> None:
    path = tmp_path / "bad.onnx"
    whole = pathlib.Path(floating.path).read_bytes()
    bytes_of = {
        "empty": b"",
        "text": b"not a model\n" * 50,
        "truncated": whole[: len(whole) // 2],
        "pickle": pickle.dumps({"a": [1] * 99}),
        "xml": b'<?xml version="1.0"?><net name="m" version="11"><layers/></net>',
    }
    if content != "missing":
        path.write_bytes(bytes_of[content])
    with pytest.raises(ArtifactError) as caught:
        load(path, target)
    assert caught.value.remedy
    assert str(tmp_path) not in str(caught.value) or content == "missing"


def test_tampered_metadata_is_an_artifact_error(floating, copy_of) -> None:
    def change(model) -> None:
        next(e for e in model.metadata_props if e.key == "paredown.batch").value = "many"

    with pytest.raises(ArtifactError, match="export it again"):
        load(copy_of(floating.path, change))


def test_unknown_runtime_is_a_target_error(floating) -> None:
    with pytest.raises(TargetError, match="onnxruntime, openvino"):
        load(floating.path, "tensorrt")


def test_missing_openvino_names_the_line_that_installs_it(floating, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'paredown\[openvino\]'"):
        load(floating.path, "openvino")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda s, x: s(), "in order or by name"),
        (lambda s, x: s(x, x), "in order or by name"),
        (lambda s, x: s(x, x=x), "in order or by name"),
        (lambda s, x: s(y=x), "in order or by name"),
        (lambda s, x: s(x.astype(np.float64)), 'astype("float32")'),
        (lambda s, x: s(x[:, :, :5]), "dimension 0"),
        (lambda s, x: s(x[0]), "dimension 0"),
        (lambda s, x: s(x.tolist()), ".numpy()"),
        (lambda s, x: s(x[:0]), "skip empty batches"),
    ],
)
def test_wrong_inputs_are_batch_errors(floating, runtime, call, remedy) -> None:
    with pytest.raises(BatchError) as caught:
        call(load(floating.path, runtime), floating.inputs[0].numpy())
    assert remedy in caught.value.remedy


def test_random_inputs_have_the_declared_types_and_shapes(floating) -> None:
    session = load(floating.path)
    made = inputs_for(session, 5, seed=3)
    assert {name: (a.shape, a.dtype.name) for name, a in made.items()} == {"x": ((5, 1, 8, 8), "float32")}
    np.testing.assert_array_equal(made["x"], inputs_for(session, 5, seed=3)["x"])
    assert session(**made).shape == (5, 10)
