"""The network that NAS-Bench-201 trains for a cell (arXiv:2001.00326, figure 1): images (batch, 3, h, w) -> logits (batch,
classes).

A 3x3 stem to C channels; three stages of N cells at C, 2C, 4C channels with a residual block of stride 2 between them;
batch norm, ReLU, average over the image, a linear layer. Convolutions are ReLU, convolution, batch norm, in that order.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paredown.core.errors import SearchSpaceError
from paredown.nas.cell201 import NAMES
from paredown.nas.dimensions import Value
from paredown.nas.symmetry import EDGES


class Zero(nn.Module):
    """(batch, c, h, w) -> zeros of the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Convolution(nn.Sequential):
    """ReLU, convolution without bias, batch norm: (batch, c_in, h, w) -> (batch, c_out, h / stride, w / stride)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        super().__init__(nn.ReLU(), convolution, nn.BatchNorm2d(c_out))


class Cell(nn.Module):
    """(batch, channels, h, w) -> the same shape. operators: the six of EDGES."""

    def __init__(self, operators: tuple[str, ...], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(operator(name, channels) for name in operators)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for end in (1, 2, 3):
            into = [edge(nodes[i]) for (i, j), edge in zip(EDGES, self.edges, strict=True) if j == end]
            nodes.append(torch.stack(into).sum(0) if len(into) > 1 else into[0])
        return nodes[3]


class Reduction(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, beside average pooling and a 1x1: (batch, c, h, w) -> (batch, 2c, h/2,
    w/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, 2 * channels, 3, stride=2)
        self.second = Convolution(2 * channels, 2 * channels, 3)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x)) + self.shortcut(x)
        return out


def operator(name: str, channels: int) -> nn.Module:
    match name:
        case "none":
            return Zero()
        case "skip_connect":
            return nn.Identity()
        case "nor_conv_1x1":
            return Convolution(channels, channels, 1)
        case "nor_conv_3x3":
            return Convolution(channels, channels, 3)
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    raise SearchSpaceError("an edge carries one of the five official operators", got=name, remedy="see cell201.OPERATORS")


def build(cell: Mapping[str, Value], *, classes: int = 10, channels: int = 16, cells: int = 5) -> nn.Module:
    """The untrained network of a cell's values; weights drawn from torch's global generator, as torch initializes them.

    channels, cells: the C and N of the benchmark. Raises SearchSpaceError for an operator that it doesn't have.
    """
    operators = tuple(str(cell[name]) for name in NAMES)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
    for stage in range(3):
        width = channels * 2**stage
        layers += [Cell(operators, width) for _ in range(cells)]
        layers += [Reduction(width)] if stage < 2 else [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * channels, classes))
