"""Intervals by resampling: a median over rounds (two-stage percentile bootstrap), a mean (BCa), a statistic of a set (normal).

Efron and Tibshirani, An Introduction to the Bootstrap (1993): percentiles in chapter 13, BCa in chapter 14 (eq. 14.9-14.15);
a standard error needs some 200 resamples, a percentile 1,000 or more (section 6.4). The same seed gives the same interval.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Vector = NDArray[np.float64]
Interval = tuple[float, float]

_RESAMPLES = 2000
_SET_RESAMPLES = 200
_CHUNK = 1 << 21  # indices drawn at once: 16 MB


def median_interval(values: Vector, confidence: float, seed: int) -> Interval:
    """Two-sided interval of the median of `values`, at `confidence`.

    values: (rounds, n), what was measured in each round. A resample draws rounds, then values within each of those, since
    what is common to a round would else count as n independent findings (Davison and Hinkley 1997, section 3.8).
    """
    rounds, n = values.shape
    random = np.random.default_rng(seed)
    at_once, medians = max(1, _CHUNK // values.size), list[Vector]()
    for start in range(0, _RESAMPLES, at_once):
        some = min(at_once, _RESAMPLES - start)
        drawn = random.integers(0, rounds, (some, rounds, 1)), random.integers(0, n, (some, rounds, n))
        medians.append(np.median(values[drawn].reshape(some, -1), axis=1))
    low, high = np.quantile(np.concatenate(medians), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_bounds(values: Vector, confidence: float, seed: int) -> Interval:
    """Two one-sided bounds of the mean of `values` (n,), each at `confidence`: bias-corrected and accelerated.

    n = 1, or values all equal, say nothing of the spread: both bounds are then the mean.
    """
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, mean
    means = np.concatenate([values[rows].mean(axis=1) for rows in _rows(len(values), _RESAMPLES, seed)])
    below = (np.sum(means < mean) + np.sum(means == mean) / 2) / len(means)
    bias = stats.norm.ppf(np.clip(below, 1 / len(means), 1 - 1 / len(means)))
    centred = mean - values
    acceleration = np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5)  # jackknife of a mean, eq. 14.15
    z = bias + stats.norm.ppf([1 - confidence, confidence])
    low, high = np.quantile(means, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return min(float(low), mean), max(float(high), mean)


def set_bounds(statistic: Callable[[NDArray[np.int64]], float], n: int, confidence: float, seed: int) -> Interval:
    """Two one-sided bounds of a statistic of a whole set: its value -/+ z times its bootstrap standard error.

    statistic: of row indices (n,); `arange(n)` gives the value itself; NaN drops a resample. Normal, because 200 resamples
    give a standard error to 5 % but no percentile.
    """
    value = statistic(np.arange(n))
    draws = [statistic(row) for rows in _rows(n, _SET_RESAMPLES, seed) for row in rows]
    reach = float(stats.norm.ppf(confidence)) * float(np.nanstd(draws, ddof=1))
    return value - reach, value + reach


def _rows(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """`resamples` rows of n indices drawn with replacement, some at a time."""
    random: Any = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // n)
    for start in range(0, resamples, at_once):
        yield random.integers(0, n, (min(at_once, resamples - start), n))
