"""A hand-quantized residual net, and its file and a float net's, exported once for all tests of this folder."""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown.graph.fake_quantize  # noqa: F401 (registers the operator)
from paredown.core.artifact import Artifact
from paredown.deploy.onnx import export_onnx
from tests.conftest import make_small_resnet


class Activation(nn.Module):
    """Asymmetric 8 bits per tensor, by the extremes of the one batch that calibrates it."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, low: int = 0, high: int = 255) -> None:
        super().__init__()
        self.low, self.high, self.calibrating = low, high, True
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.calibrating:
            smallest, largest = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
            self.scale.fill_((largest - smallest) / (self.high - self.low))
            self.zero_point.fill_(round(self.low - smallest / float(self.scale)))
        return torch.ops.paredown.fake_quantize(x, self.scale, self.zero_point, -1, self.low, self.high)


class Weighted(nn.Module):
    """A convolution or linear layer with its weight on [-63, 63] per output channel."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        largest = layer.weight.detach().flatten(1).abs().amax(1)
        self.register_buffer("scale", largest / 63)
        self.register_buffer("zero_point", torch.zeros(len(largest), dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        weight = torch.ops.paredown.fake_quantize(layer.weight, self.scale, self.zero_point, 0, -63, 63)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


class QuantizedNet(nn.Module):
    """conv-relu-conv-add-relu-mean-linear on (batch, 3, 12, 12)."""

    def __init__(self, low: int = 0, high: int = 255) -> None:
        super().__init__()
        self.input, self.q1, self.q2, self.q3, self.q4 = (Activation(low, high) for _ in range(5))
        self.conv1, self.conv2 = Weighted(nn.Conv2d(3, 16, 3, 1, 1)), Weighted(nn.Conv2d(16, 16, 3, 1, 1))
        self.head = Weighted(nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.q1(torch.relu(self.conv1(self.input(x))))
        x = self.q3(torch.relu(x + self.q2(self.conv2(x))))
        return self.head(self.q4(x.mean((2, 3))))


class DeepNet(nn.Module):
    """Ten convolutions on (batch, 3, 20, 20) with activations of 3 bits, that of `middle` in float: deep and coarse enough that
    the values which two orders of summation round differently move everything behind them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input = Activation(0, 255)
        self.middle = nn.Conv2d(24, 24, 3, 1, 1)
        self.convs = nn.ModuleList(Weighted(self._conv(24 if i else 3)) for i in range(10))
        self.rounded = nn.ModuleList(Activation(0, 7) for _ in range(11))
        self.head = Weighted(nn.Linear(24, 10))

    def _conv(self, channels: int) -> nn.Conv2d:
        conv = nn.Conv2d(channels, 24, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        return conv

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for i, conv in enumerate(self.convs):
            x = self.rounded[i](torch.relu(conv(x)))
            if i == 4:
                x = self.rounded[10](torch.relu(self.middle(x)))
        return self.head(x[:, :, 9:11, 9:11].mean((2, 3)))


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    model.eval()
    with torch.no_grad():
        model(x)
    for module in model.modules():
        if isinstance(module, Activation):
            module.calibrating = False
    return model


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    inputs: tuple[Tensor, ...]
    artifact: Artifact

    @property
    def path(self) -> str:
        return self.artifact.path


def exported(net: Callable[[], nn.Module], size: int, folder: pathlib.Path) -> Exported:
    """A quantized net calibrated on four random images of so many pixels a side, and its file."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, size, size)
    model = calibrated(net(), x)
    return Exported(model, (x,), export_onnx(model, (x,), folder / "model.onnx", target="onnxruntime"))


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(QuantizedNet, 12, tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(DeepNet, 20, tmp_path_factory.mktemp("deep"))


@pytest.fixture(scope="session")
def floating(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = make_small_resnet()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    return Exported(model, (x,), export_onnx(model, (x,), path, target="onnxruntime"))


@pytest.fixture
def copy_of(tmp_path: pathlib.Path):
    """A function: a changed copy of an exported file."""
    import onnx

    def make(path: str, change) -> str:
        model = onnx.load(path)
        change(model)
        changed = tmp_path / "changed.onnx"
        onnx.save(model, str(changed))
        return str(changed)

    return make
