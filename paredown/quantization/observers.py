"""What range a tensor takes over a calibration set, seen batch by batch in bounded memory.

Each observer is a frozen value: `seen(x)` gives the next one, `range()` what it found. The order of the batches, and how
the data is cut into them, don't change the result.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor

from paredown.core.recipe import Quantize

BINS = 8192
_SMALLEST_EXPONENT = -100  # bins are never narrower than 2 ** this; everything below is as good as 0


class Observer(Protocol):
    """x: finite, floating point, any shape."""

    def seen(self, x: Tensor) -> Self: ...

    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that the grid should represent; (0, 0) where nothing was seen."""
        ...


def observer_of(config: Quantize) -> Observer:
    """An observer that has seen nothing, as the config names it."""
    return MinMax() if config.observer == "minmax" else Percentile(config.percentile / 100)


@dataclass(frozen=True)
class MinMax:
    """The extremes of everything seen."""

    minimum: float = math.inf
    maximum: float = -math.inf

    def seen(self, x: Tensor) -> "MinMax":
        if x.numel() == 0:
            return self
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        return MinMax(min(self.minimum, low), max(self.maximum, high))

    def range(self) -> tuple[float, float]:
        return (self.minimum, self.maximum) if self.minimum <= self.maximum else (0.0, 0.0)


@dataclass(frozen=True)
class Percentile:
    """The quantiles 1 - p and p of everything seen, from a histogram of at most BINS bins.

    Bins are [k w, (k + 1) w) for whole k, with w a power of two, and they always include 0. A range that grows doubles w,
    which merges bins exactly: the histogram depends on the data alone. Quantiles are interpolated within a bin (an error
    of at most w, below 2 / BINS of the range) and never lie outside the extremes.
    """

    p: float
    extremes: MinMax = field(default_factory=MinMax)
    exponent: int = _SMALLEST_EXPONENT
    first: int = 0  # k of the first bin
    counts: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64), repr=False)

    def seen(self, x: Tensor) -> "Percentile":
        extremes = self.extremes.seen(x)
        if x.numel() == 0:
            return self
        low, high = min(extremes.minimum, 0.0), max(extremes.maximum, 0.0)
        exponent = max(_exponent(low, high), self.exponent)
        first = math.floor(math.ldexp(low, -exponent))
        size = math.floor(math.ldexp(high, -exponent)) - first + 1
        where = _bins(x.detach(), exponent) - first
        counts = torch.bincount(where, minlength=size).cpu()
        shift = min(exponent - self.exponent, 62)  # shifting an int64 further is not defined; every bin is 0 or -1 by then
        old = ((torch.arange(len(self.counts)) + self.first) >> shift) - first
        return Percentile(self.p, extremes, exponent, first, counts.index_add(0, old, self.counts))

    def range(self) -> tuple[float, float]:
        if int(self.counts.sum()) == 0:
            return 0.0, 0.0
        low, high = self.extremes.range()
        return max(self._quantile(1 - self.p), low), min(self._quantile(self.p), high)

    def _quantile(self, q: float) -> float:
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


def _bins(x: Tensor, exponent: int) -> Tensor:
    """(n,) int64: floor(x / 2 ** exponent); exact, as the width is a power of two."""
    return torch.floor(x.double().flatten() * 2.0**-exponent).long()
