import numpy as np
import pytest

from paredown.measure.bootstrap import mean_bounds, median_interval, set_bounds


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=80)
    rounds = values.reshape(8, 10)
    assert median_interval(rounds, 0.95, 3) == median_interval(rounds, 0.95, 3)
    assert mean_bounds(values, 0.95, 3) == mean_bounds(values, 0.95, 3)
    assert mean_bounds(values, 0.95, 3) != mean_bounds(values, 0.95, 4)


def test_median_interval_covers_as_often_as_it_says() -> None:
    randoms = [np.random.default_rng(seed) for seed in range(150)]
    draws = [np.exp(random.normal(size=(12, 1)) + 0.3 * random.normal(size=(12, 8))) for random in randoms]
    hits = sum(low <= 1.0 <= high for low, high in (median_interval(values, 0.9, 0) for values in draws))
    alone = sum(low <= 1.0 <= high for low, high in (median_interval(values.reshape(1, -1), 0.9, 0) for values in draws))
    assert 0.82 <= hits / 150 <= 0.97  # 0.9 -/+ 3 standard errors
    assert alone / 150 < 0.7  # were the pairs of a round independent findings


def test_each_mean_bound_misses_as_rarely_as_it_says() -> None:
    draws = [np.random.default_rng(seed).exponential(size=60) for seed in range(200)]
    bounds = np.array([mean_bounds(values, 0.95, 0) for values in draws])
    assert np.mean(bounds[:, 1] < 1.0) <= 0.1  # 0.05 + 3 standard errors
    assert np.mean(bounds[:, 0] > 1.0) <= 0.1


def test_mean_bounds_agree_with_the_normal_ones_for_many_samples() -> None:
    values = np.random.default_rng(0).normal(1, 2, size=5000)
    low, high = mean_bounds(values, 0.95, 0)
    reach = 1.645 * values.std() / np.sqrt(5000)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.1 * reach)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0]])
def test_values_without_spread_give_their_mean(values: list[float]) -> None:
    assert mean_bounds(np.array(values), 0.95, 0) == (2.0, 2.0)


def test_bounds_of_a_whole_set_agree_with_those_of_its_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = set_bounds(lambda rows: float(values[rows].mean()), 400, 0.95, 0)
    reach = 1.645 * values.std() / 20
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(reach, rel=0.2)


def test_a_resample_without_a_value_is_left_out() -> None:
    values = np.arange(50.0)

    def statistic(rows: np.ndarray) -> float:
        return float("nan") if rows[0] % 2 and len(set(rows)) < 50 else float(values[rows].mean())

    low, high = set_bounds(statistic, 50, 0.95, 0)
    assert low < values.mean() < high
