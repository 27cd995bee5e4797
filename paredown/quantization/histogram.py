"""A histogram of a stream that re-bins itself: exact counts, bounded memory, whatever the order of the data.

Bins are [k w, (k + 1) w) for whole k, with w a power of two, and they always include 0. A range that grows doubles w,
which merges bins exactly: the histogram depends on the data alone, not on how it was cut into batches.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS = 8192
_SMALLEST_EXPONENT = -100  # bins are never narrower than 2 ** this; everything below is as good as 0


@dataclass(frozen=True)
class Histogram:
    """At most BINS bins of width 2 ** exponent. minimum, maximum: of everything seen. first: k of the first bin."""

    minimum: float = math.inf
    maximum: float = -math.inf
    exponent: int = _SMALLEST_EXPONENT
    first: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64), repr=False)  # (bins,)

    def seen(self, x: Tensor) -> "Histogram":
        """x: finite, floating point, any shape."""
        if x.numel() == 0:
            return self
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        minimum, maximum = min(self.minimum, low), max(self.maximum, high)
        low, high = min(minimum, 0.0), max(maximum, 0.0)
        exponent = max(_exponent(low, high), self.exponent)
        first = math.floor(math.ldexp(low, -exponent))
        size = math.floor(math.ldexp(high, -exponent)) - first + 1
        counts = torch.bincount(_bins(x.detach(), exponent, first), minlength=size).cpu()
        shift = min(exponent - self.exponent, 62)  # shifting an int64 further is not defined; every bin is 0 or -1 by then
        old = ((torch.arange(len(self.counts)) + self.first) >> shift) - first
        return Histogram(minimum, maximum, exponent, first, counts.index_add(0, old, self.counts))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    def centers(self) -> Tensor:
        """(bins,) float64: the middle of each bin, no further out than the extremes; 0 for the bin that begins at 0."""
        k = torch.arange(len(self.counts), dtype=torch.float64) + self.first
        middle = torch.where(k == 0, torch.zeros_like(k), (k + 0.5) * self.width)
        return middle.clamp(min(self.minimum, 0.0), max(self.maximum, 0.0))

    def quantile(self, q: float) -> float:
        """The value below which a fraction q of everything seen lies, linear within its bin."""
        below = torch.cumsum(self.counts, 0)
        rank = q * int(below[-1])
        k = min(int(torch.searchsorted(below.double(), torch.tensor(rank, dtype=torch.float64))), len(below) - 1)
        inside = int(self.counts[k])
        part = (rank - (int(below[k]) - inside)) / inside if inside else 0.0
        return math.ldexp(self.first + k + part, self.exponent)


def _exponent(low: float, high: float) -> int:
    """The smallest exponent of a bin width with which [low, high] fits BINS bins."""
    exponent = _SMALLEST_EXPONENT
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / BINS)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent


def _bins(x: Tensor, exponent: int, first: int) -> Tensor:
    """(n,) int16, 0 to BINS - 1: floor(x / 2 ** exponent) - first; exact, as the width is a power of two, and as no quotient of
    float32 can be too small for float32 where that is 1 or less.
    """
    wide = x.double() if exponent > 0 or x.dtype == torch.float64 else x.float()
    return (wide.flatten() * 2.0**-exponent).floor_().sub_(first).to(torch.int16)
