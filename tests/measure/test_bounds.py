import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import gammaln

from paredown.core.errors import CertificationError
from paredown.measure.bounds import drop_bounds, proportion_bounds, samples_needed, smallest_drop


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[int, int, int]:
    """(lost, gained, n)"""
    n = draw(st.integers(1, 200))
    lost = draw(st.integers(0, n))
    return lost, draw(st.integers(0, n - lost)), n


@pytest.mark.parametrize(("n", "confidence"), [(10, 0.95), (11, 0.8), (9, 0.5)])
def test_chance_of_a_bound_below_the_truth_is_at_most_alpha(n: int, confidence: float) -> None:
    """Not by simulation: the chance of every outcome is summed, over a grid of true probabilities."""
    pairs = [(lost, gained) for lost, gained in itertools.product(range(n + 1), repeat=2) if lost + gained <= n]
    bounds = np.array([drop_bounds(lost, gained, n, confidence)[1] for lost, gained in pairs])
    counts = np.array([(lost, gained, n - lost - gained) for lost, gained in pairs])
    ways = gammaln(n + 1) - gammaln(counts + 1).sum(axis=1)
    for flips, share in itertools.product(np.linspace(0.02, 1, 30), np.linspace(0, 1, 21)):
        truth = np.array([flips * share, flips * (1 - share), 1 - flips])
        with np.errstate(divide="ignore", invalid="ignore"):
            chances = np.exp(ways + np.where(counts > 0, counts * np.log(truth), 0).sum(axis=1))
        missed = chances[bounds < truth[0] - truth[1] - 1e-12].sum()
        assert missed <= 1 - confidence + 1e-6


@pytest.mark.parametrize(("p10", "p01"), [(0.02, 0.01), (0.05, 0.0), (0.01, 0.04)])
def test_simulated_bounds_miss_as_rarely_as_they_say(p10: float, p01: float) -> None:
    draws = np.random.default_rng(0).multinomial(100, [p10, p01, 1 - p10 - p01], size=200)
    kinds, counts = np.unique(draws, axis=0, return_counts=True)
    bounds = np.array([drop_bounds(int(lost), int(gained), 100, 0.9) for lost, gained, _ in kinds])
    slack = 3 * math.sqrt(0.1 * 0.9 / 200)
    assert counts[bounds[:, 1] < p10 - p01].sum() / 200 <= 0.1 + slack
    assert counts[bounds[:, 0] > p10 - p01].sum() / 200 <= 0.1 + slack


@settings(max_examples=15, deadline=None)
@given(outcomes())
def test_bounds_enclose_the_drop_seen_and_stay_in_range(outcome: tuple[int, int, int]) -> None:
    lost, gained, n = outcome
    low, high = drop_bounds(lost, gained, n, 0.95)
    assert -1 <= low <= (lost - gained) / n <= high <= 1


@settings(max_examples=15, deadline=None)
@given(outcomes())
def test_a_further_loss_never_lowers_the_bound_and_a_further_gain_never_raises_it(outcome: tuple[int, int, int]) -> None:
    lost, gained, n = outcome
    high = drop_bounds(lost, gained, n + 1, 0.95)[1]
    assert drop_bounds(lost + 1, gained, n + 1, 0.95)[1] >= high - 2e-6
    assert drop_bounds(lost, gained + 1, n + 1, 0.95)[1] <= high + 2e-6


@settings(max_examples=10, deadline=None)
@given(outcomes())
def test_lower_bound_is_the_upper_one_with_the_models_exchanged(outcome: tuple[int, int, int]) -> None:
    lost, gained, n = outcome
    low, high = drop_bounds(lost, gained, n, 0.95)
    assert drop_bounds(gained, lost, n, 0.95) == (-high, -low)


@settings(max_examples=10, deadline=None)
@given(outcomes())
def test_more_confidence_gives_wider_bounds(outcome: tuple[int, int, int]) -> None:
    low, high = drop_bounds(*outcome, 0.8)
    wide_low, wide_high = drop_bounds(*outcome, 0.95)
    assert wide_low <= low + 2e-6
    assert wide_high >= high - 2e-6


@pytest.mark.parametrize("drop", [0.0, 0.005, 0.02])
def test_many_samples_give_nearly_the_normal_bound(drop: float) -> None:
    n, flips = 5000, 300  # 6 %
    lost = (flips + round(drop * n)) // 2
    high = drop_bounds(lost, flips - lost, n, 0.95)[1]
    seen = (2 * lost - flips) / n
    normal = seen + 1.645 * math.sqrt((flips / n - seen**2) / n)
    assert 0.005 <= high - seen <= 0.007
    assert high == pytest.approx(normal, abs=2e-4)


@pytest.mark.parametrize("n", [1, 2, 5, 30, 300, 5000])
def test_no_flip_gives_the_bound_of_a_proportion_of_none(n: int) -> None:
    assert drop_bounds(0, 0, n, 0.95)[1] == pytest.approx(1 - 0.0495 ** (1 / n), abs=2e-6)


def test_one_lost_sample_of_400_gives_nearly_clopper_pearsons_bound() -> None:
    assert drop_bounds(1, 0, 400, 0.95)[1] == pytest.approx(stats.beta.ppf(0.95, 2, 399), abs=1e-4)


@pytest.mark.parametrize(("lost", "gained", "n"), [(1, 0, 1), (7, 0, 7)])
def test_losing_every_sample_gives_no_bound_at_all(lost: int, gained: int, n: int) -> None:
    assert drop_bounds(lost, gained, n, 0.95)[1] == 1.0


def test_proportion_bounds_are_clopper_pearsons() -> None:
    low, high = proportion_bounds(90, 100, 0.95)
    assert stats.binom.sf(89, 100, low) == pytest.approx(0.05)
    assert stats.binom.cdf(90, 100, high) == pytest.approx(0.05)
    assert proportion_bounds(0, 10, 0.95)[0] == 0.0
    assert proportion_bounds(10, 10, 0.95)[1] == 1.0


@pytest.mark.parametrize(
    ("max_drop", "confidence", "n"),
    [(0.01, 0.95, 300), (0.02, 0.95, 149), (0.5, 0.95, 5), (1.0, 0.95, 1), (0.02, 0.99, 244), (0.1, 0.8, 16)],
)
def test_samples_needed_is_the_smallest_that_certifies(max_drop: float, confidence: float, n: int) -> None:
    assert samples_needed(max_drop, confidence) == n
    assert drop_bounds(0, 0, n, confidence)[1] == smallest_drop(n, confidence) <= max_drop
    assert n == 1 or smallest_drop(n - 1, confidence) > max_drop


@pytest.mark.parametrize("max_drop", [0, -0.1, math.nan])
def test_no_number_of_samples_certifies_a_drop_of_zero(max_drop: float) -> None:
    with pytest.raises(CertificationError, match=r"no number of samples .* allow a small drop"):
        samples_needed(max_drop)
