"""What range a tensor takes over a calibration set, seen batch by batch in bounded memory.

Each observer is a frozen value: `seen(x)` gives the next one, `range()` what it found. The order of the batches, and how
the data is cut into them, don't change the result of any but `MovingAverage`, whose point is to weigh batches by their time.

    MinMax         the extremes
    MovingAverage  of each batch's extremes (Jacob et al., arXiv:1712.05877, section 3.1)
    Percentile     the quantiles 1 - p and p
    MeanSquare     the range with the smallest mean squared error on the grid
    Entropy        the clipping threshold with the smallest KL divergence (Migacz, "8-bit inference with TensorRT", GTC 2017)
"""

import math
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor

from paredown.core.steps import Quantize
from paredown.quantization.grid import ACTIVATIONS, Grid, scale_and_zero_point, two_sided_scales
from paredown.quantization.histogram import Histogram

_PERCENTILE = 99.99  # the usual choice
_COARSE = 2048  # bins of the entropy method, as in its source
_FACTORS = 40  # candidates per pass of the mean-square search


class Observer(Protocol):
    """x: finite, floating point, any shape."""

    def seen(self, x: Tensor) -> Self: ...

    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that the grid should represent; (0, 0) where nothing was seen."""
        ...


def observer_of(config: Quantize, grid: Grid = ACTIVATIONS) -> Observer:
    """An observer that has seen nothing, as the config names it. grid: what the tensor will be rounded to."""
    name = config.activations.observer
    if name == "percentile":
        return Percentile((config.activations.percentile or _PERCENTILE) / 100)
    others: dict[str, Observer] = {
        "minmax": MinMax(), "moving_average": MovingAverage(), "mse": MeanSquare(grid), "kl": Entropy(grid)
    }  # fmt: skip
    return others[name]


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
class MovingAverage:
    """The exponential average of the extremes of batches, each weighing `weight`, the first one all."""

    weight: float = 0.1
    minimum: float = math.nan
    maximum: float = math.nan

    def seen(self, x: Tensor) -> "MovingAverage":
        if x.numel() == 0:
            return self
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        if math.isnan(self.minimum):
            return MovingAverage(self.weight, low, high)
        keep = 1 - self.weight
        return MovingAverage(self.weight, keep * self.minimum + self.weight * low, keep * self.maximum + self.weight * high)

    def range(self) -> tuple[float, float]:
        return (0.0, 0.0) if math.isnan(self.minimum) else (self.minimum, self.maximum)


@dataclass(frozen=True)
class Percentile:
    """The quantiles 1 - p and p of everything seen, interpolated within a bin (an error of at most its width, below
    2 / BINS of the range); never outside the extremes.
    """

    p: float
    histogram: Histogram = field(default_factory=Histogram)

    def seen(self, x: Tensor) -> "Percentile":
        return Percentile(self.p, self.histogram.seen(x))

    def range(self) -> tuple[float, float]:
        h = self.histogram
        if h.total == 0:
            return 0.0, 0.0
        return max(h.quantile(1 - self.p), h.minimum), min(h.quantile(self.p), h.maximum)


@dataclass(frozen=True)
class MeanSquare:
    """The range whose grid gives the smallest mean squared error over the histogram, by a search that moves both ends."""

    grid: Grid
    histogram: Histogram = field(default_factory=Histogram)

    def seen(self, x: Tensor) -> "MeanSquare":
        return MeanSquare(self.grid, self.histogram.seen(x))

    def range(self) -> tuple[float, float]:
        h = self.histogram
        if h.total == 0:
            return 0.0, 0.0
        return best_range(h.centers(), h.counts.double(), self.grid)


@dataclass(frozen=True)
class Entropy:
    """Clips |x| at the threshold whose clipped and rounded distribution is nearest, by KL divergence, to the one seen."""

    grid: Grid
    histogram: Histogram = field(default_factory=Histogram)

    def seen(self, x: Tensor) -> "Entropy":
        return Entropy(self.grid, self.histogram.seen(x))

    def range(self) -> tuple[float, float]:
        h = self.histogram
        if h.total == 0:
            return 0.0, 0.0
        one_sided = h.minimum >= 0 or h.maximum <= 0
        counts, width = _magnitudes(h)
        threshold = width * entropy_threshold(counts, self.grid.levels if one_sided else self.grid.levels // 2)
        return max(h.minimum, -threshold), min(h.maximum, threshold)


def best_range(values: Tensor, weights: Tensor, grid: Grid, passes: int = 3) -> tuple[float, float]:
    """values, weights (n,) float64 -> the (low, high) around 0 with the smallest weighted squared error on the grid.

    One end after the other is moved over 40 fractions of its extreme, `passes` times; never outside the extremes.
    """
    extremes = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    fractions = torch.linspace(1 / _FACTORS, 1, _FACTORS, dtype=torch.float64)
    low, high = extremes
    for _ in range(passes):
        before = low, high
        if extremes[1] > 0:
            ends = extremes[1] * fractions
            high = float(ends[_errors(values, weights, torch.full_like(ends, low), ends, grid).argmin()])
        if extremes[0] < 0:
            ends = extremes[0] * fractions
            low = float(ends[_errors(values, weights, ends, torch.full_like(ends, high), grid).argmin()])
        if (low, high) == before:
            break
    return low, high


def entropy_threshold(counts: Tensor, levels: int) -> int:
    """counts (n,) of |x| in n equal bins -> how many of them to keep: everything beyond is clipped into the last.

    levels: of the rounded distribution, over the kept bins. All of them where there are no more than that. At least a sixteenth
    is kept, as TensorRT's search from 128 to 2,048 bins does: two levels fit two bins exactly, whatever is clipped.
    """
    p = counts.double()
    if len(p) > 1:
        p[0] = torch.minimum(p[0], p[1])  # zeros are exact on any grid; the many behind a relu would outweigh all else
    beyond = p.flip(0).cumsum(0).flip(0)
    filled = int(torch.nonzero(p).max()) + 1 if bool(p.any()) else 1
    candidates = range(max(min(levels, filled), filled // 16), filled + 1, max(1, (filled - levels) // 256))
    divergences = [_divergence(p[:kept], float(beyond[kept]) if kept < len(p) else 0.0, levels) for kept in candidates]
    best = min(range(len(divergences)), key=divergences.__getitem__)
    return candidates[best] if divergences[best] < divergences[-1] else filled


def _errors(values: Tensor, weights: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """(k,) ranges -> (k,) weighted squared errors of values (n,)."""
    if grid.two_sided:
        below, above = (t.double().unsqueeze(1) for t in two_sided_scales(low, high, grid))
        scale, zero_point = torch.where(values < 0, below, above), torch.zeros(1)
    else:
        scale, zero_point = (t.double().unsqueeze(1) for t in scale_and_zero_point(low, high, grid))
    q = (torch.round(values / scale) + zero_point).clamp(grid.low, grid.high)  # (k, n)
    return (((q - zero_point) * scale - values) ** 2) @ weights


def _magnitudes(histogram: Histogram) -> tuple[Tensor, float]:
    """The histogram of |x|, at most _COARSE bins, and their width."""
    k = torch.arange(len(histogram.counts)) + histogram.first
    index = torch.where(k < 0, -k - 1, k)
    merge = max(1, math.ceil((int(index.max()) + 1) / _COARSE))
    counts = torch.zeros(int(index.max()) // merge + 1, dtype=torch.int64)
    return counts.index_add(0, index // merge, histogram.counts), histogram.width * merge


def _divergence(kept: Tensor, beyond: float, levels: int) -> float:
    """KL divergence of the clipped distribution from its rounded form, over bins that aren't empty."""
    p = kept.clone()
    p[-1] += beyond
    group = torch.arange(len(kept)) * levels // len(kept)  # (kept,) bin -> level
    occupied = kept > 0
    sums = torch.zeros(levels, dtype=torch.float64).index_add(0, group, kept)
    members = torch.zeros(levels, dtype=torch.float64).index_add(0, group, occupied.double())
    q = torch.where(occupied, (sums / members.clamp(min=1))[group], 0.0)
    p, q = p / p.sum(), q / q.sum().clamp(min=1e-300)
    mass = p > 0
    return float((p[mass] * torch.log(p[mass] / q[mass].clamp(min=1e-12))).sum())
