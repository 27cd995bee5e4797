"""Ranges over a stream: what was seen matters, not how it was cut; memory stays bounded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.core.recipe import Quantize
from paredown.quantization.observers import BINS, MinMax, Observer, Percentile, observer_of

few = settings(max_examples=40, deadline=None)
values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200)


def after(observer: Observer, *batches: torch.Tensor) -> Observer:
    for batch in batches:
        observer = observer.seen(batch)
    return observer


@few
@given(values, st.integers(0, 2**31), st.sampled_from([MinMax(), Percentile(0.99)]))
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
    assert len(observer.counts) <= BINS
    assert int(observer.counts.sum()) == 40


def test_values_at_zero_and_subnormal_values_are_counted() -> None:
    observer = after(Percentile(0.9), torch.zeros(5), torch.full((5,), 1e-42), torch.full((5,), -1e-42))
    assert int(observer.counts.sum()) == 15
    assert max(abs(v) for v in observer.range()) <= 1e-30


def test_nothing_seen_gives_an_empty_range() -> None:
    assert MinMax().range() == Percentile(0.99).range() == after(MinMax(), torch.empty(0)).range() == (0.0, 0.0)


def test_the_config_names_the_observer() -> None:
    assert observer_of(Quantize(observer="minmax")) == MinMax()
    percentile = observer_of(Quantize(observer="percentile", percentile=99.9))
    assert isinstance(percentile, Percentile)
    assert percentile.p == pytest.approx(0.999)
