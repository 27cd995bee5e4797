"""Ranges over a stream: what was seen matters, not how it was cut; memory stays bounded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.core.steps import Activations, Quantize
from paredown.quantization.grid import ACTIVATIONS, Grid, dequantize, linear_grid, quantize, scale_and_zero_point
from paredown.quantization.histogram import BINS, Histogram
from paredown.quantization.observers import (
    Entropy,
    MeanSquare,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    best_range,
    entropy_threshold,
    observer_of,
)

UNORDERED = [MinMax(), Percentile(0.99), MeanSquare(ACTIVATIONS), Entropy(linear_grid(4))]
few = settings(max_examples=40, deadline=None)
values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200)


def after(observer: Observer, *batches: torch.Tensor) -> Observer:
    for batch in batches:
        observer = observer.seen(batch)
    return observer


@few
@given(values, st.integers(0, 2**31), st.sampled_from(UNORDERED))
def test_order_and_batch_size_do_not_change_the_range(data: list[float], seed: int, observer: Observer) -> None:
    x = torch.tensor(data)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    assert after(observer, x).range() == after(observer, *shuffled.split(7)).range()


@few
@given(values, st.sampled_from([0.6, 0.9, 0.999]))
def test_percentile_lies_within_two_bins_of_the_order_statistics(data: list[float], p: float) -> None:
    x = np.array(data)
    low, high = after(Percentile(p), torch.tensor(data)).range()
    bin_width = 4 * (max(x.max(), 0) - min(x.min(), 0)) / BINS + 1e-29
    assert np.quantile(x, p, method="lower") - bin_width <= high <= np.quantile(x, p, method="higher") + bin_width
    assert np.quantile(x, 1 - p, method="lower") - bin_width <= low <= np.quantile(x, 1 - p, method="higher") + bin_width


@few
@given(values)
def test_at_100_percent_it_is_the_minimum_and_the_maximum(data: list[float]) -> None:
    assert after(Percentile(1.0), torch.tensor(data)).range() == after(MinMax(), torch.tensor(data)).range()


def test_percentile_matches_numpy_on_a_long_stream_with_growing_range() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(10_000, generator=generator) * 1.5**i for i in range(10)]
    low, high = after(Percentile(0.999), *batches).range()
    whole = torch.cat(batches).numpy()
    assert [low, high] == pytest.approx(np.quantile(whole, [0.001, 0.999]).tolist(), rel=5e-3)


def test_an_outlier_moves_the_extremes_but_not_the_percentile() -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    x[17] = 50.0
    assert after(MinMax(), x).range()[1] == 50.0
    assert after(Percentile(0.9999), x).range()[1] < 1.01


def test_memory_does_not_grow_with_the_data() -> None:
    observer = Percentile(0.99)
    for exponent in range(-30, 30, 3):
        observer = observer.seen(torch.tensor([-1.0, 2.0]) * 10.0**exponent)
    assert len(observer.histogram.counts) <= BINS
    assert int(observer.histogram.counts.sum()) == 40


def test_values_at_zero_and_subnormal_values_are_counted() -> None:
    observer = after(Percentile(0.9), torch.zeros(5), torch.full((5,), 1e-42), torch.full((5,), -1e-42))
    assert int(observer.histogram.counts.sum()) == 15
    assert max(abs(v) for v in observer.range()) <= 1e-30


def test_nothing_seen_gives_an_empty_range() -> None:
    assert MinMax().range() == Percentile(0.99).range() == after(MinMax(), torch.empty(0)).range() == (0.0, 0.0)


def test_the_config_names_the_observer() -> None:
    assert observer_of(Quantize(activations=Activations(observer="minmax"))) == MinMax()
    assert isinstance(observer_of(Quantize()), MeanSquare)
    for written, p in ((None, 0.9999), (99.9, 0.999)):
        percentile = observer_of(Quantize(activations=Activations(observer="percentile", percentile=written)))
        assert isinstance(percentile, Percentile) and percentile.p == pytest.approx(p)


def error(x: torch.Tensor, ends: tuple[float, float], grid: Grid) -> float:
    scale, zero_point = scale_and_zero_point(*(torch.tensor([end]) for end in ends), grid)
    return float(((dequantize(quantize(x, scale, zero_point, grid), scale, zero_point) - x) ** 2).mean())


def laplace(samples: int = 40_000) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.distributions.Laplace(0.0, 1.0).sample((samples,))


@pytest.mark.parametrize("grid", [linear_grid(4), linear_grid(4, symmetric=False, signed=False), linear_grid(3), ACTIVATIONS])
@pytest.mark.parametrize("relu", [False, True])
def test_the_mean_square_range_has_a_smaller_error_than_the_extremes_and_the_percentile(grid: Grid, relu: bool) -> None:
    x = laplace().relu() if relu else laplace()
    found = error(x, after(MeanSquare(grid), *x.split(999)).range(), grid)
    others = [error(x, after(other, x).range(), grid) for other in (MinMax(), Percentile(0.999), Percentile(0.99))]
    assert found < min(others)


def test_the_mean_square_range_is_that_of_a_full_search() -> None:
    x, grid = laplace(4000), linear_grid(3, symmetric=False)
    ends = np.linspace(0.05, 1, 20)
    best = min(error(x, (float(x.min()) * a, float(x.max()) * b), grid) for a in ends for b in ends)
    found = best_range(x.double(), torch.ones(len(x), dtype=torch.float64), grid)
    assert error(x, found, grid) <= best * 1.02


@pytest.mark.parametrize("grid", [linear_grid(8), linear_grid(4), ACTIVATIONS])
def test_the_entropy_range_clips_an_outlier_and_not_a_uniform_tensor(grid: Grid) -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    x[5] = 60.0
    low, high = after(Entropy(grid), *x.split(1000)).range()
    assert 2.0 < high < 8.0 and -8.0 < low < -2.0
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    assert after(Entropy(grid), uniform).range() == pytest.approx((uniform.min().item(), uniform.max().item()), abs=0.02)


def test_the_entropy_threshold_ignores_how_many_zeros_a_relu_leaves() -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).abs()
    counts = torch.histc(x, 1000, 0, 5)
    spiked = counts.clone()
    spiked[0] = 1e9
    assert entropy_threshold(spiked, 16) == entropy_threshold(counts, 16)
    assert 400 < entropy_threshold(counts, 16) < 1000


@pytest.mark.parametrize("levels", [2, 4])
def test_few_levels_keep_a_sixteenth_of_a_long_tail(levels: int) -> None:
    long = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).mul(1.5).exp()
    counts = torch.histc(long, 2048, 0, float(long.max()))
    assert 128 <= entropy_threshold(counts, levels) < 256


def test_no_range_is_narrower_than_what_a_coarse_grid_can_hold() -> None:
    assert entropy_threshold(torch.ones(10), 128) == 10
    assert after(Entropy(ACTIVATIONS), torch.full((9,), 3.0)).range()[1] == 3.0


def test_the_moving_average_follows_late_batches_and_depends_on_their_order() -> None:
    small, large = torch.tensor([-1.0, 1.0]), torch.tensor([-3.0, 5.0])
    assert after(MovingAverage(0.5), small, large).range() == (-2.0, 3.0)
    assert after(MovingAverage(0.5), large, small).range() == (-2.0, 3.0)
    assert after(MovingAverage(0.1), large, small).range() == pytest.approx((-2.8, 4.6))
    assert after(MovingAverage(0.1), *[small] * 100, *[large] * 100).range() == pytest.approx((-3, 5), abs=1e-3)
    assert MovingAverage().range() == (0.0, 0.0)


@pytest.mark.parametrize("observer", [*UNORDERED, MovingAverage()])
def test_4000_batches_need_no_more_memory_than_40(observer: Observer) -> None:
    generator, held = torch.Generator().manual_seed(0), {}
    for index in range(4000):
        observer = observer.seen(torch.randn(50, generator=generator) * (1 + index / 100))
        held[index] = len(observer.histogram.counts) if hasattr(observer, "histogram") else 0
    assert max(held.values()) <= BINS
    assert all(np.isfinite(observer.range()))


def test_few_large_numbers_stay_in_the_mean_square_range() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    x[::20_000] = 60.0  # 5 of them, as a transformer's hidden states have
    assert after(MeanSquare(ACTIVATIONS), *x.split(999)).range()[1] > 55
    assert after(Percentile(0.9999), *x.split(999)).range()[1] < 10


@pytest.mark.parametrize("exponent", [-90, -3, 0, 3, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bins_are_exact_whatever_the_scale(exponent: int, dtype: torch.dtype) -> None:
    x = (torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 2.0**exponent).to(dtype)
    x[:3] = torch.tensor([1e-42, -1e-42, 0.0])
    found = Histogram().seen(x)
    k = torch.floor(x.double() * 2.0**-found.exponent).long() - found.first
    assert torch.equal(found.counts, torch.bincount(k, minlength=len(found.counts)))
