"""Linear integer grids (ONNX QuantizeLinear and DequantizeLinear; Jacob et al., arXiv:1712.05877, eq. 1).

q = clamp(round(x / scale) + zero_point, low, high), rounding half to even; x ~ (q - zero_point) * scale.
scale, zero_point: () or (1,) for a grid per tensor, (channels,) for one per channel along `axis`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Ranges below this count as all zeros: their values vanish, and no product of two scales can become subnormal.
SMALLEST_RANGE = 1e-15


@dataclass(frozen=True)
class Grid:
    """The integers low..high, inclusive. symmetric: the zero point is 0, and the range reaches as far on both sides."""

    low: int
    high: int
    symmetric: bool


ACTIVATIONS = Grid(0, 255, symmetric=False)
WEIGHTS = Grid(-127, 127, symmetric=True)
WEIGHTS_REDUCED = Grid(-63, 63, symmetric=True)  # two products of uint8 and a 7-bit weight can't saturate a 16-bit sum

BIASES = Grid(-(2**31), 2**31 - 1, symmetric=True)  # what runtimes hold a bias in, in steps of s_x * s_w


def scale_and_zero_point(minimum: Tensor, maximum: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """minimum, maximum: finite, any one shape (one entry per channel) -> scale float32 above 0, zero_point int32, of that shape.

    The range always includes 0, and 0 is exactly representable. A range of (nearly) zero width gets scale 1.
    """
    low, high = minimum.double().clamp(max=0), maximum.double().clamp(min=0)
    if grid.symmetric:
        width, steps = torch.maximum(-low, high), float(grid.high)
    else:
        width, steps = high - low, float(grid.high - grid.low)
    scale = torch.where(width < SMALLEST_RANGE, 1.0, width / steps).float()
    if grid.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = torch.round(grid.low - low / scale.double()).clamp(grid.low, grid.high)
    return scale, torch.where(width < SMALLEST_RANGE, float(grid.low), zero_point).int()


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int = -1) -> Tensor:
    """x: floating point, any shape -> int32 in [low, high], the same shape."""
    s, z = _along(scale, x.dim(), axis), _along(zero_point, x.dim(), axis)
    return torch.clamp(torch.round(x / s.to(x.dtype)) + z.to(x.dtype), grid.low, grid.high).int()


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int = -1) -> Tensor:
    """q: integers, any shape -> scale's type, the same shape."""
    s, z = _along(scale, q.dim(), axis), _along(zero_point, q.dim(), axis)
    return (q - z).to(s.dtype) * s


def channel_range(weight: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    """weight: any shape -> its smallest and its largest value per channel, (channels,) each."""
    rows = weight.detach().movedim(axis, 0).flatten(1) if weight.dim() > 1 else weight.detach().unsqueeze(1)
    return rows.amin(1), rows.amax(1)


def _along(value: Tensor, dimensions: int, axis: int) -> Tensor:
    """(channels,) -> a shape that broadcasts along `axis`; () where there is one value for all."""
    if axis < 0:
        return value.reshape(())
    return value.view([-1 if d == axis else 1 for d in range(dimensions)])
