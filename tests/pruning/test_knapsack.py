"""The exact knapsack against every combination."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.pruning.knapsack import knapsack

COLUMN = st.lists(st.tuples(st.floats(0, 9), st.floats(-3, 9)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.lists(COLUMN, min_size=1, max_size=4), st.floats(0, 1))
def test_no_combination_within_the_limit_loses_less(units: list[list[tuple[float, float]]], tightness: float) -> None:
    loss = [np.array([option[0] for option in unit]) for unit in units]
    cost = [np.array([option[1] for option in unit]) for unit in units]
    low, high = sum(float(c.min()) for c in cost), sum(float(c.max()) for c in cost)
    limit = low + tightness * (high - low) + 1e-4
    chosen = knapsack(loss, cost, limit)
    assert chosen is not None
    every = list(itertools.product(*(range(len(unit)) for unit in units)))
    best = min(_sum(loss, options) for options in every if _sum(cost, options) <= limit - 5e-5)
    assert _sum(cost, chosen) <= limit + 5e-5
    assert _sum(loss, chosen) <= best + 1e-5


def test_a_limit_out_of_reach_has_no_answer() -> None:
    assert knapsack([np.array([1.0, 0.0])], [np.array([2.0, 3.0])], 1.9) is None


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_units_of_loss_and_cost_do_not_matter(scale: float) -> None:
    loss, cost = [np.array([3.0, 2.0, 0.0])] * 2, [np.array([0.0, 2.0, 3.0])] * 2
    assert sorted(knapsack([scale * x for x in loss], [scale * c for c in cost], 3.5 * scale) or []) == [0, 2]


def _sum(columns: list[np.ndarray], options: Sequence[int]) -> float:
    return float(sum(column[option] for column, option in zip(columns, options, strict=True)))
