"""Exact one-sided bounds for 0/1 metrics: of a proportion, and of the drop between two models on the same samples.

The drop (Berger and Boos, P values maximized over a confidence set for the nuisance parameter, JASA 89, 1994)
    Of n samples the candidate lost n10 (the baseline was right, the candidate is wrong) and gained n01. With probabilities
    p10, p01 the true drop is delta = p10 - p01; the chance that a sample flips at all, d = p10 + p01, is a nuisance.
    H0: drop >= delta is rejected where the flips seen are too favourable, and the upper bound is the smallest delta that is
    rejected at alpha = 1 - confidence. With T = n10 - n01,

        p(delta) = sup over d in C of P(T <= t; delta, d) + gamma,
        P(T <= t; delta, d) = sum over m of Bin(m; n, d) P(Bin(m, q) <= (m + t) / 2),   q = (1 + delta / d) / 2,

    where m is the number of flips and C the Clopper-Pearson interval of d at level 1 - gamma, gamma = alpha / 100. That is
    exact: the chance of a bound below the truth is at most alpha for every n and every p10, p01 (the supremum is taken over
    a grid, the sum over all m but a mass of 1e-12). No flip at all counts as the most favourable outcome of all, before any
    T < 0, so that its bound is 1 - (alpha - gamma)^(1/n): one point at 95 % takes n = 300.
    The lower bound is the upper one with gains and losses exchanged.

The proportion (Clopper and Pearson, Biometrika 26, 1934): quantiles of the beta distribution.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from paredown.core.errors import CertificationError

_GRID = 24        # values of d over which the supremum is taken
_TAIL = 1e-12     # mass of m left out on either side
_STEP = 1e-6      # to which delta is found, rounded away from the truth


@dataclass(frozen=True)
class _Flips:
    """n samples, of which `lost` + `gained` flipped; the confidence set of d is [least, most]."""

    n: int
    lost: int
    gained: int
    least: float
    most: float
    gamma: float


def drop_bounds(lost: int, gained: int, n: int, confidence: float) -> tuple[float, float]:
    """One-sided bounds of the true drop, each at `confidence`, in [-1, 1]."""
    return -_upper(gained, lost, n, confidence), _upper(lost, gained, n, confidence)


def proportion_bounds(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """One-sided Clopper-Pearson bounds of a proportion, each at `confidence`."""
    alpha = 1 - confidence
    low = 0.0 if successes == 0 else float(stats.beta.ppf(alpha, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - alpha, successes + 1, n - successes))
    return low, high


def no_flip_bound(n: int, confidence: float) -> float:
    """The upper bound of the drop where none of n samples flipped."""
    alpha = 1 - confidence
    return float(1 - (alpha - _gamma(alpha)) ** (1 / n))


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
    if max_drop >= 1:
        return 1
    alpha = 1 - confidence
    n = math.ceil(math.log(alpha - _gamma(alpha)) / math.log1p(-max_drop))
    return n if no_flip_bound(n, confidence) <= max_drop else n + 1


def _gamma(alpha: float) -> float:
    return alpha / 100


def _upper(lost: int, gained: int, n: int, confidence: float) -> float:
    """The smallest drop that is rejected, found by bisection: p(delta) falls as delta grows."""
    alpha = 1 - confidence
    if lost == gained == 0:
        return no_flip_bound(n, confidence)
    flips = _flips(lost, gained, n, _gamma(alpha))
    seen = (lost - gained) / n
    low, high = seen, min(1.0, seen + 3 / math.sqrt(n))
    while high < 1 and _p_value(flips, high) > alpha:
        low, high = high, min(1.0, high + 2 * (high - seen))
    if _p_value(flips, high) > alpha:
        return 1.0
    while high - low > _STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if _p_value(flips, middle) > alpha else (low, middle)
    return high


def _flips(lost: int, gained: int, n: int, gamma: float) -> _Flips:
    least, most = proportion_bounds(lost + gained, n, 1 - gamma / 2)
    return _Flips(n, lost, gained, least, most, gamma)


def _p_value(flips: _Flips, delta: float) -> float:
    """sup over d of the chance of an outcome at least as favourable, plus gamma."""
    least = max(flips.least, delta)  # a drop of delta takes at least as many flips
    if least > flips.most:
        return flips.gamma
    d = np.linspace(least, flips.most, _GRID)  # (grid,)
    return float(_chance(flips, np.maximum(delta, -d), d).max()) + flips.gamma


def _chance(flips: _Flips, delta: NDArray[np.float64], d: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(outcome at least as favourable; delta, d), (grid,)."""
    t = flips.lost - flips.gained
    first = int(stats.binom.ppf(_TAIL, flips.n, d[0]))
    last = int(stats.binom.isf(_TAIL, flips.n, d[-1]))
    m = np.arange(max(first, 0), min(last, flips.n) + 1)  # (flips,)
    q = (1 + delta / d) / 2
    mass = stats.binom.pmf(m[None, :], flips.n, d[:, None])  # (grid, flips)
    chance = np.sum(mass * stats.binom.cdf((m[None, :] + t) // 2, m[None, :], q[:, None]), axis=1)
    if t < 0:
        chance += (1 - d) ** flips.n  # no flip at all counts as more favourable
    return np.asarray(np.minimum(chance, 1.0))
