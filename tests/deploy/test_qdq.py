import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from paredown.core.errors import ExportError
from paredown.deploy import qdq
from paredown.deploy.capabilities import executed_operators
from paredown.deploy.onnx import build, export_onnx
from paredown.deploy.parity import check_parity
from tests.deploy.conftest import Activation, QuantizedNet, Weighted, calibrated


class Mlp(nn.Module):
    """Linear layers over (batch, length, width): MatMul in ONNX, its weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.q0, self.q1, self.q2 = (Activation() for _ in range(3))
        self.up, self.down = Weighted(nn.Linear(12, 20)), Weighted(nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.q0(x)
        return self.down(self.q1(torch.relu(self.up(x))))


class Pooled(nn.Module):
    """A max pool between a quantizer and the next convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.q0, self.q1 = Activation(), Activation()
        self.conv1, self.conv2 = Weighted(nn.Conv2d(3, 8, 3)), Weighted(nn.Conv2d(8, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.max_pool2d(self.q1(torch.relu(self.conv1(self.q0(x)))), 2))


def initializers(path: str) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_weights_are_stored_in_8_bits_within_their_range(quantized) -> None:
    stored = initializers(quantized.path)
    for name in ("conv1", "conv2", "head"):
        weight = stored[f"{name}.layer.weight_quantized"]
        assert weight.dtype == np.int8
        assert np.abs(weight).max() == 63
        assert f"{name}.layer.weight" not in stored


def test_biases_are_stored_in_32_bits_with_the_product_scale(quantized) -> None:
    stored = initializers(quantized.path)
    bias = quantized.model.conv2.layer.bias.detach().numpy()
    scale = stored["conv2d_1_bias_scale"]
    expected = quantized.model.q1.scale.numpy() * quantized.model.conv2.scale.numpy()
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    assert stored["conv2d_1_bias_quantized"].dtype == np.int32
    np.testing.assert_allclose(stored["conv2d_1_bias_quantized"] * scale, bias, atol=scale.max() / 2 * 1.001)


def test_onnx_runtime_runs_every_operator_of_the_net_in_int8(quantized) -> None:
    found = executed_operators(quantized.path)
    assert found.int8 == {"QGemm": 1, "QLinearAdd": 1, "QLinearConv": 2}
    assert set(found.floating) <= {"Transpose", "ReduceMean"}


def test_openvino_runs_every_operator_of_the_net_in_int8(quantized) -> None:
    found = executed_operators(quantized.path, "openvino")
    assert found.int8["Convolution"] == 2 and found.int8["FullyConnected"] == 1
    assert set(found.floating) <= {"Reduce", "Pooling"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_quantized_file_agrees_with_the_simulation(quantized, runtime) -> None:
    found = check_parity(quantized.model, quantized.inputs, quantized.path, runtime, precision="int8")
    assert max(p.error for p in found) < 0.01


def test_linear_over_three_dimensions_runs_in_int8(tmp_path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 12)
    model = calibrated(Mlp(), x)
    artifact = export_onnx(model, (x,), tmp_path / "m.onnx", target="onnxruntime")
    stored = initializers(artifact.path)
    assert stored["up.layer.weight_quantized_transposed"].shape == (12, 20)
    assert "up.layer.weight_quantized" not in stored
    assert executed_operators(artifact.path).int8 == {"MatMulIntegerToFloat": 2}
    for runtime in ("onnxruntime", "openvino"):
        assert len(check_parity(model, (x,), artifact.path, runtime, precision="int8")) == 3


def test_bias_scale_is_found_behind_a_max_pool(tmp_path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    artifact = export_onnx(calibrated(Pooled(), x), (x,), tmp_path / "m.onnx", target="onnxruntime")
    assert sum(value.dtype == np.int32 for value in initializers(artifact.path).values()) == 2


def test_activations_of_fewer_bits_are_clipped_between_q_and_dq(tmp_path) -> None:
    x = torch.randn(2, 3, 12, 12)
    artifact = export_onnx(calibrated(QuantizedNet(0, 15), x), (x,), tmp_path / "m.onnx", target="onnxruntime")
    found = executed_operators(artifact.path)
    assert found.int8["QLinearConv"] == 2 and found.floating["Clip"] == 5


def test_signed_activations_are_exported_as_int8() -> None:
    x = torch.randn(2, 3, 12, 12)
    built = build(calibrated(QuantizedNet(-128, 127), x), (x,))
    assert built.precision == "int8"
    points = [t for t in built.model.graph.initializer if t.name.startswith("zero_point_uint8")]
    assert points == []


def test_quantizer_that_was_never_calibrated_is_refused() -> None:
    x = torch.randn(2, 3, 12, 12)
    model = calibrated(QuantizedNet(), x)
    model.q2.scale.fill_(torch.nan)
    with pytest.raises(ExportError, match="calibrate it first"):
        build(model, (x,))


def placeholder(value: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int, low: int, high: int):
    """A model of one placeholder on a constant."""
    node = helper.make_node(qdq.PLACEHOLDER, ["w", "s", "z"], ["y"], domain=qdq.DOMAIN, name="q", axis=axis, low=low, high=high)
    tensors = [numpy_helper.from_array(a, n) for a, n in ((value, "w"), (scale, "s"), (zero_point, "z"))]
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(qdq.DOMAIN, 1)])


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([(-63, 63), (-127, 127), (0, 255)]),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_folded_constant_equals_the_torch_operator(channels, width, grid, seed, per_channel) -> None:
    low, high = grid
    random = np.random.default_rng(seed)
    value = random.standard_normal((channels, width)).astype(np.float32) * 3
    count = channels if per_channel else 1
    scale = random.uniform(0.01, 0.1, count).astype(np.float32)
    zero_point = np.full(count, 128 if low == 0 else 0, np.int32)
    axis = 0 if per_channel else -1
    model = placeholder(value, scale, zero_point, axis, low, high)
    assert qdq.lower_(model) == 1
    got = onnx.reference.ReferenceEvaluator(model).run(None, {})[0]
    tensors = [torch.from_numpy(a) for a in (value, scale, zero_point)]
    want = torch.ops.paredown.fake_quantize(*tensors, axis, low, high).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_bias_quantizer_becomes_a_32_bit_initializer() -> None:
    value, scale = np.array([0.5, -3.25], np.float32), np.array([1e-4, 1e-3], np.float32)
    model = placeholder(value, scale, np.zeros(2, np.int32), 0, -(2**31), 2**31 - 1)
    qdq.lower_(model)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert stored["w_quantized"].dtype == np.int32
    assert stored["w_quantized"].tolist() == [5000, -3250]


@pytest.mark.parametrize(("low", "high", "zero", "remedy"), [(0, 2**40, 0, "bits=8"), (0, 255, 300, "calibrate")])
def test_grids_that_no_type_holds_are_refused(low, high, zero, remedy) -> None:
    model = placeholder(np.ones((2, 2), np.float32), np.ones(1, np.float32), np.full(1, zero, np.int32), -1, low, high)
    with pytest.raises(ExportError, match=remedy):
        qdq.lower_(model)
