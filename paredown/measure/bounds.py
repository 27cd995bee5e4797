"""Exact one-sided bounds for 0/1 metrics: of a proportion, and of the drop between two models on the same samples.

The drop
    Of n samples the candidate lost n10 (the baseline was right, the candidate is wrong) and gained n01. With probabilities
    p10, p01 the true drop is delta = p10 - p01; the chance that a sample flips at all, d = p10 + p01, is a nuisance.
    The upper bound is the smallest delta that an exact unconditional test of H0: drop >= delta rejects at
    alpha = 1 - confidence:

        p(delta) = sup over d in C of P(R; delta, d) + gamma,
        P(R; delta, d) = sum over m of Bin(m; n, d) P(Bin(m, q) <= k(m)),   q = (1 + delta / d) / 2.

    m is the number of flips, of which Bin(m, q) are losses. C is the Clopper-Pearson interval of d at level 1 - gamma,
    gamma = alpha / 100 (Berger and Boos, P values maximized over a confidence set for the nuisance parameter, JASA 89, 1994):
    without it, the supremum over all d would be that of a model that flips everything.
    R holds the outcomes at least as favourable to the candidate as the one seen: those whose asymptotic upper bound is no
    higher. That bound is u with score(n10, n01; u) = -z(confidence), the score statistic of Tango (Statistics in Medicine
    17, 1998, eq. 7); the score falls as u grows and grows with n10, so for each m the region is n10 <= k(m).
    R does not depend on delta, so p falls as delta grows, and bisection finds the bound (Buehler 1957; Lloyd and
    Moldovan, Statistics in Medicine 26, 2007). Ordering by n10 - n01 alone would be exact too, but up to half a point wider.

    Exact means: for every n, p10, p01 the chance of a bound below the truth is at most alpha, but for the supremum being
    taken over a grid and a mass of 2e-12 left out of the sum. Where nothing flips, the bound is 1 - (alpha - gamma)^(1/n)
    (from 0.98 confidence on a little more): one point at 95 % takes n = 300.
    The lower bound is the upper one with losses and gains exchanged, its sign turned.

The proportion: Clopper and Pearson, Biometrika 26, 1934.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from paredown.core.errors import CertificationError

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

_GRID = 16  # values of d among which the supremum is looked for, twice
_TAIL = 1e-12  # mass of m left out on either side
_STEP = 1e-6  # to which delta is found, rounded away from zero risk


@dataclass(frozen=True)
class _Region:
    """The outcomes at least as favourable as the one seen: m flips of n samples, at most `losses` of them losses.

    m, losses: (flips,). least, most: the confidence set of d.
    """

    n: int
    m: Counts
    losses: Counts
    least: float
    most: float
    gamma: float


def drop_bounds(lost: int, gained: int, n: int, confidence: float) -> tuple[float, float]:
    """One-sided bounds of the true drop, each at `confidence` in [0.5, 1); the bounds lie in [-1, 1]."""
    return -_upper(gained, lost, n, confidence), _upper(lost, gained, n, confidence)


def proportion_bounds(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """One-sided Clopper-Pearson bounds of a proportion, each at `confidence`."""
    alpha = 1 - confidence
    low = 0.0 if successes == 0 else float(stats.beta.ppf(alpha, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - alpha, successes + 1, n - successes))
    return low, high


def samples_needed(max_drop: float, confidence: float = 0.95) -> int:
    """The smallest n that can certify `max_drop` at all, which is where no sample flips. 0.01 at 0.95: 300.

    Raises CertificationError for a `max_drop` of 0: a finite sample can't exclude a small drop.
    """
    if not max_drop > 0:
        raise CertificationError(
            "max_drop must be above 0 to be certified: no number of samples excludes a small drop",
            got=max_drop,
            remedy="allow a small drop, such as 0.01",
        )
    alpha = 1 - confidence
    too_few = 0 if max_drop >= 1 else math.ceil(math.log(alpha - alpha / 100) / math.log1p(-max_drop)) - 1  # by the formula above
    enough, step = too_few + 1, 1
    while smallest_drop(enough, confidence) > max_drop:
        too_few, enough, step = enough, enough + step, 2 * step
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (middle, enough) if smallest_drop(middle, confidence) > max_drop else (too_few, middle)
    return enough


def smallest_drop(n: int, confidence: float = 0.95) -> float:
    """The smallest drop that n samples can certify, which is where none of them flips. 300 at 0.95: 0.00997."""
    return _upper(0, 0, n, confidence)


def _upper(lost: int, gained: int, n: int, confidence: float) -> float:
    """The smallest drop that is rejected, by bisection."""
    alpha, seen = 1 - confidence, (lost - gained) / n
    if lost == n:
        return 1.0
    asymptotic = _asymptotic(lost, gained, n, confidence)
    region = _region(lost, gained, n, asymptotic, alpha / 100)
    low, high = seen, min(1.0, 2 * asymptotic - seen)
    if high < 1 and _p_value(region, high) > alpha:
        low, high = high, 1.0
    if _p_value(region, high) > alpha:
        return 1.0
    step = min(_STEP, (high - low) / 100)
    while high - low > step:
        middle = (low + high) / 2
        low, high = (middle, high) if _p_value(region, middle) > alpha else (low, middle)
    return high


def _asymptotic(lost: int, gained: int, n: int, confidence: float) -> float:
    """The upper bound by the score test alone, right for large n: what the outcomes are ordered by."""
    z = max(float(stats.norm.ppf(confidence)), 1e-3)
    low, high = (lost - gained) / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if float(_score(lost, gained, n, middle)) > -z else (low, middle)
    return high


def _score(lost: Any, gained: Any, n: int, delta: float) -> Any:
    """Tango's score of the outcomes (lost, gained) against a drop of delta: 0 where that drop was seen, below 0 where less."""
    b = (2 * n - lost + gained) * delta - lost - gained
    c = -gained * delta * (1 - delta)
    p01 = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)  # most likely where the drop is delta
    variance = n * (2 * p01 + delta * (1 - delta))
    return (lost - gained - n * delta) / np.sqrt(np.maximum(variance, 1e-300))


def _region(lost: int, gained: int, n: int, at: float, gamma: float) -> _Region:
    """The outcomes whose score against a drop of `at` is no higher than the outcome's own."""
    least, most = proportion_bounds(lost + gained, n, 1 - gamma / 2)
    first, last = int(stats.binom.ppf(_TAIL, n, least)), int(stats.binom.isf(_TAIL, n, most))
    m = np.arange(max(first, 0), min(last, n) + 1)
    bound = _score(lost, gained, n, at) + 1e-9
    low, high = np.full_like(m, -1), m.copy()  # losses: at least low, at most high, for each m
    while bool((low < high).any()):
        middle = (low + high + 1) // 2
        inside = _score(middle, m - middle, n, at) <= bound
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return _Region(n, m, low, least, most, gamma)


def _p_value(region: _Region, delta: float) -> float:
    """sup over d of the chance of the region where the drop is delta, plus gamma."""
    least, most = max(region.least, delta), region.most  # a drop of delta takes at least as many flips
    if least > most:
        return region.gamma
    for _ in range(2):  # the whole set, then around the best of it
        d = np.linspace(least, most, _GRID)
        chance = _chance(region, delta, d[:, None])
        best = int(chance.argmax())
        least, most = d[max(best - 1, 0)], d[min(best + 1, _GRID - 1)]
    return float(chance.max()) + region.gamma


def _chance(region: _Region, delta: float, d: Floats) -> Floats:
    """P(region; delta, d), (grid,), for d (grid, 1)."""
    d = np.maximum(d, 1e-300)  # at 0 nothing flips, whatever q
    q = np.clip((1 + np.maximum(delta, -d) / d) / 2, 0, 1)  # no drop is below -d
    mass = stats.binom.pmf(region.m, region.n, d)  # (grid, flips)
    return np.asarray(np.sum(mass * stats.binom.cdf(region.losses, region.m, q), axis=1))
