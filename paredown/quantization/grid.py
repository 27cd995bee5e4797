"""Linear integer grids of 2 to 16 bits (ONNX QuantizeLinear and DequantizeLinear; Jacob et al., arXiv:1712.05877, eq. 1).

q = clamp(round(x / scale) + zero_point, low, high), rounding half to even; x ~ (q - zero_point) * scale.
scale, zero_point: () or (1,) for a grid per tensor, (channels,) for one per channel along `axis`, (rows, blocks) for one per
group: there a weight is a matrix of `weight.shape[0]` rows, each cut into blocks of consecutive numbers (the last may be short).

The two-sided variant gives each sign its own scale: q = round(x / positive) above 0, round(x / negative) below; x ~ q * its
scale. No runtime computes with it in integers: in files it is a few operators around Q/DQ, and what reads it runs in float.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.core.errors import RecipeError

# Ranges below this count as all zeros: their values vanish, and no product of two scales can become subnormal.
SMALLEST_RANGE = 1e-15
FEWEST_BITS, MOST_BITS = 2, 16


@dataclass(frozen=True)
class Grid:
    """The integers low..high, inclusive. symmetric: the zero point is 0, and the range reaches as far on both sides (or up
    from 0 alone, where low is 0). power_of_two: scales are powers of two, the smallest that don't clip. two_sided: each sign has
    a scale of its own.
    """

    low: int
    high: int
    symmetric: bool
    power_of_two: bool = False
    two_sided: bool = False

    @property
    def levels(self) -> int:
        return self.high - self.low + 1

    @property
    def bits(self) -> int:
        """How many bits hold one of its integers."""
        return (self.levels - 1).bit_length()


ACTIVATIONS = Grid(0, 255, symmetric=False)
WEIGHTS = Grid(-127, 127, symmetric=True)
WEIGHTS_REDUCED = Grid(-63, 63, symmetric=True)  # two products of uint8 and a 7-bit weight can't saturate a 16-bit sum

BIASES = Grid(-(2**31), 2**31 - 1, symmetric=True)  # what runtimes hold a bias in, in steps of s_x * s_w


def linear_grid(
    bits: int, *, symmetric: bool = True, signed: bool = True, narrow: bool = False, power_of_two: bool = False
) -> Grid:
    """An n-bit grid: signed is [-2^(n-1), 2^(n-1) - 1], narrow without its lowest integer; unsigned is [0, 2^n - 1].

    Raises RecipeError: bits outside 2..16, an unsigned narrow grid.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not FEWEST_BITS <= bits <= MOST_BITS:
        raise RecipeError(
            f"bits must be a whole number in [{FEWEST_BITS}, {MOST_BITS}]", got=bits, remedy="8 runs in integers; 32 is float"
        )
    if not signed and narrow:
        raise RecipeError(
            "a narrow grid is signed: it leaves out the lowest negative integer", got="signed=False", remedy="narrow=False"
        )
    half = 2 ** (bits - 1)
    low, high = (-half + narrow, half - 1) if signed else (0, 2 * half - 1)
    return Grid(low, high, symmetric, power_of_two)


def scale_and_zero_point(minimum: Tensor, maximum: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """minimum, maximum: finite, any one shape (one entry per channel) -> scale float32 above 0, zero_point int32, of that shape.

    The range always includes 0, and 0 is exactly representable. A range of (nearly) zero width gets scale 1.
    """
    low, high = minimum.double().clamp(max=0), maximum.double().clamp(min=0)
    if grid.symmetric:
        width, steps = high if grid.low == 0 else torch.maximum(-low, high), float(grid.high)
    else:
        width, steps = high - low, float(grid.high - grid.low)
    empty = width < SMALLEST_RANGE
    scale = torch.where(empty, 1.0, width / steps)
    scale = (power_above(scale) if grid.power_of_two else scale).float()
    if grid.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = torch.round(grid.low - low / scale.double()).clamp(grid.low, grid.high)
    return scale, torch.where(empty, float(grid.low), zero_point).int()


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int = -1) -> Tensor:
    """x: floating point, any shape -> int32 in [low, high], the same shape."""
    s, z = _along(scale, x.dim(), axis), _along(zero_point, x.dim(), axis)
    return torch.clamp(torch.round(x / s.to(x.dtype)) + z.to(x.dtype), grid.low, grid.high).int()


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int = -1) -> Tensor:
    """q: integers, any shape -> scale's type, the same shape."""
    s, z = _along(scale, q.dim(), axis), _along(zero_point, q.dim(), axis)
    return (q - z).to(s.dtype) * s


def two_sided_scales(minimum: Tensor, maximum: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """minimum, maximum: finite, any one shape -> (negative, positive) scales float32 above 0, for a signed grid."""
    negative = _side(-minimum.double().clamp(max=0), float(-grid.low), grid)
    return negative, _side(maximum.double().clamp(min=0), float(grid.high), grid)


def quantize_two_sided(x: Tensor, negative: Tensor, positive: Tensor, grid: Grid, axis: int = -1) -> Tensor:
    """x: floating point, any shape -> int32 in [low, high], the same shape."""
    return torch.clamp(torch.round(x / _by_sign(x, negative, positive, axis).to(x.dtype)), grid.low, grid.high).int()


def dequantize_two_sided(q: Tensor, negative: Tensor, positive: Tensor, axis: int = -1) -> Tensor:
    """q: integers, any shape -> the scales' type, the same shape."""
    return q.to(positive.dtype) * _by_sign(q, negative, positive, axis)


def channel_range(weight: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    """weight: any shape -> its smallest and its largest value per channel, (channels,) each."""
    rows = weight.detach().movedim(axis, 0).flatten(1) if weight.dim() > 1 else weight.detach().unsqueeze(1)
    return rows.amin(1), rows.amax(1)


def in_blocks(weight: Tensor, block: int) -> Tensor:
    """weight (rows, ...) -> (rows, blocks, block), its rows padded with zeros at their end to a multiple of `block`."""
    rows = weight.reshape(weight.shape[0], -1)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % block))
    return padded.view(rows.shape[0], -1, block)


def block_range(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """weight (rows, ...) -> its smallest and its largest value per block, (rows, blocks) each; a padded block's range holds 0."""
    blocks = in_blocks(weight.detach(), block)
    return blocks.amin(2), blocks.amax(2)


def per_entry(value: Tensor, weight: Tensor, block: int = 0) -> Tensor:
    """A scale or zero point (1,), (rows,) or, with a block, (rows, blocks) -> one number per entry, (rows, entries)."""
    rows = weight.shape[0]
    entries = weight.numel() // max(rows, 1)
    if block:
        return value.repeat_interleave(block, 1)[:, :entries]
    return value.reshape(-1, 1).expand(rows, entries)


def _along(value: Tensor, dimensions: int, axis: int) -> Tensor:
    """(channels,) -> a shape that broadcasts along `axis`; () where there is one value for all."""
    if axis < 0:
        return value.reshape(())
    return value.view([-1 if d == axis else 1 for d in range(dimensions)])


def _side(width: Tensor, steps: float, grid: Grid) -> Tensor:
    scale = torch.where(width < SMALLEST_RANGE, 1.0, width / steps)
    return (power_above(scale) if grid.power_of_two else scale).float()


def _by_sign(value: Tensor, negative: Tensor, positive: Tensor, axis: int) -> Tensor:
    return torch.where(value < 0, _along(negative, value.dim(), axis), _along(positive, value.dim(), axis))


def power_above(scale: Tensor) -> Tensor:
    """The smallest power of two that is not below `scale`; exact: no logarithm is rounded."""
    mantissa, exponent = torch.frexp(scale.double())
    return torch.ldexp(torch.ones_like(mantissa), torch.where(mantissa == 0.5, exponent - 1, exponent))
