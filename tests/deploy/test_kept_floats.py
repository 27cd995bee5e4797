"""What is protected between integer layers runs in float, with the weights that it has."""

import pathlib

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import paredown
from paredown import Quantize, Task
from paredown.deploy.capabilities import executed_operators
from tests.quantization.models import Gated, Scored


def test_a_layer_in_float_between_integer_ones_stays_in_float(pattern_task: Task, tmp_path: pathlib.Path) -> None:
    """ONNX Runtime would round its weights to 8 bits by itself."""
    for protect, floats in (((), 0), (("block1.conv2",), 1), (("block1.conv2", "block2.conv1"), 2)):
        model = paredown.quantize(pattern_task, Quantize(protect=protect))
        artifact = paredown.export(model, pattern_task, path=tmp_path / "m.onnx")
        floating = executed_operators(artifact.path).floating
        assert floating.get("Conv", 0) + floating.get("FusedConv", 0) == floats, (protect, floating)


def in_int8(kind: type[nn.Module], runtime: str, folder: pathlib.Path) -> tuple[nn.Module, Tensor, nn.Module, str]:
    """A model of images, images, and the model in int8 with its file, which export compares."""
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(32, 3, 8, 8)
    batches = [(x, torch.zeros(32, 8, 8, dtype=torch.int64))]
    task = Task(model, (x[:2],), batches, batches, metric=lambda output, _: output.mean((1, 2, 3)))
    quantized = paredown.quantize(task, Quantize(), target=runtime)
    return model, x, quantized, paredown.export(quantized, task, target=runtime, path=folder / "m.onnx").path


EXECUTED = {
    "onnxruntime": ({"QLinearConv": 4, "QLinearMul": 3, "QLinearSigmoid": 3}, {"ReduceMean": 1, "Sigmoid": 1}),
    "openvino": ({"Convolution": 4, "Eltwise": 1, "Reduce": 1}, {"Eltwise": 1}),  # each activation is part of its convolution
}


@pytest.mark.parametrize("runtime", EXECUTED)
def test_gates_and_silus_compute_in_integers(runtime: str, tmp_path: pathlib.Path) -> None:
    """The last sigmoid, which is the result, stays in float."""
    model, x, quantized, path = in_int8(Gated, runtime, tmp_path)
    found = executed_operators(path, runtime)
    assert (found.int8, found.floating) == EXECUTED[runtime]
    with torch.no_grad():
        assert float((quantized(x) - model(x)).norm() / model(x).norm()) < 0.01


@pytest.mark.parametrize("runtime", EXECUTED)
def test_probabilities_that_are_results_stay_as_fine_as_they_are(runtime: str, tmp_path: pathlib.Path) -> None:
    model, x, _, path = in_int8(Scored, runtime, tmp_path)
    found = torch.as_tensor(paredown.load(path, runtime)(x.numpy()))
    with torch.no_grad():
        wanted = model(x)[:, 4:10]
    assert float((found[:, 4:10] == 0).float().mean()) == 0
    assert float((found[:, 4:10].log() - wanted.log()).abs().mean()) < 0.1


class Middle(nn.Module):
    """Two convolutions with a layer between them that has one weight far out, which 8 bits for all would round the rest by."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3, padding=1), middle, nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            next(self.middle.parameters()).flatten()[0] = 50.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self.first(x).relu()).relu()).mean((2, 3))
        return out


@pytest.mark.parametrize(
    "middle", [nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 2, groups=2, bias=False)]
)
def test_its_weights_are_those_of_the_model_with_and_without_a_bias(middle: nn.Module, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(1)
    x = torch.randn(16, 3, 8, 8)
    batches = [(x, torch.zeros(16, dtype=torch.int64))]
    task = Task(Middle(middle).eval(), (x[:2],), batches, batches)
    model = paredown.quantize(task, Quantize(protect=("middle",)))
    artifact = paredown.export(model, task, path=tmp_path / "m.onnx")  # raises where the file differs
    with torch.no_grad():
        wanted = model(x).numpy()
    got = paredown.load(artifact.path)(x.numpy())
    assert np.abs(got - wanted).max() < 0.01 * np.abs(wanted).max()


def test_the_bias_in_32_bits_is_the_bias(pattern_task: Task, tmp_path: pathlib.Path) -> None:
    model = paredown.quantize(pattern_task, Quantize(protect=("block1.conv2",)))
    file = onnx.load(paredown.export(model, pattern_task, path=tmp_path / "m.onnx").path)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    (kept,) = [node for node in file.graph.node if node.output[0].endswith("_bias_kept")]
    bias = values[kept.input[0]].astype(np.float64) * values[kept.input[1]]
    np.testing.assert_allclose(bias, model.get_parameter("block1.conv2.bias").detach().numpy(), rtol=1e-6, atol=1e-8)


def test_what_a_layer_with_4_bit_weights_reads_is_not_rounded(tmp_path: pathlib.Path) -> None:
    """ONNX Runtime would round it to 8 bits as it comes."""
    torch.manual_seed(0)
    x = torch.randn(4, 16, 128)
    net = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 64)).eval()
    task = Task(net, (x,), [(x, x)], [(x, x)], loss=lambda o, t: o.mean(), metric=lambda o, t: o.mean((1, 2)))
    model = paredown.quantize(task, Quantize(kind="weight_only", bits=4))
    artifact = paredown.export(model, task, path=tmp_path / "m.onnx")
    with torch.no_grad():
        wanted = model(x).numpy()
    got = paredown.load(artifact.path)(x.numpy())
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
