"""Fronts, crowding and hypervolume against brute force and against pymoo."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.nas.dimensions import Int
from paredown.nas.pareto import crowding, front, hypervolume, nondominated, ranks
from paredown.nas.problem import Limit, Objective, Problem, Result
from paredown.nas.space import Space

points = st.integers(1, 3).flatmap(lambda m: st.lists(st.tuples(*[st.integers(0, 6)] * m), min_size=1, max_size=12))


@settings(deadline=None, max_examples=60)
@given(points)
def test_the_front_is_what_nothing_dominates(rows: list[tuple[int, ...]]) -> None:
    costs = np.array(rows, dtype=float)

    def dominated(i: int) -> bool:
        return any((c <= costs[i]).all() and (c < costs[i]).any() for c in costs)

    expected = {i for i in range(len(costs)) if not dominated(i)}
    assert set(np.flatnonzero(ranks(costs, np.zeros(len(costs))) == 0)) == expected
    assert {tuple(costs[i]) for i in nondominated(costs)} == {tuple(costs[i]) for i in expected}


@settings(deadline=None, max_examples=40)
@given(points)
def test_hypervolume_counts_the_dominated_unit_cells(rows: list[tuple[int, ...]]) -> None:
    costs = np.array(rows, dtype=float)
    grid = np.stack(np.meshgrid(*[np.arange(7)] * costs.shape[1]), axis=-1).reshape(-1, costs.shape[1])
    inside = (costs[None] <= grid[:, None]).all(2).any(1).sum()
    assert hypervolume(costs, [7.0] * costs.shape[1]) == pytest.approx(inside)


def test_fronts_and_crowding_are_those_of_pymoo() -> None:
    sorting = pytest.importorskip("pymoo.util.nds.non_dominated_sorting")
    costs = np.random.default_rng(0).random((40, 2))
    fronts = sorting.NonDominatedSorting().do(costs)
    mine = ranks(costs, np.zeros(40))
    assert all((mine[members] == level).all() for level, members in enumerate(fronts))
    metric = pytest.importorskip("pymoo.operators.survival.rank_and_crowding.metrics")
    theirs = metric.get_crowding_function("cd").do(costs[fronts[0]])
    both = crowding(costs[fronts[0]])
    finite = np.isfinite(both)
    assert (np.isinf(theirs) == ~finite).all()
    assert both[finite] / 2 == pytest.approx(theirs[finite])  # pymoo divides by the number of objectives


def test_what_keeps_a_limit_comes_before_what_does_not() -> None:
    problem = Problem(Space((Int("a", 0, 9),)), (Objective("error"),), (Limit("ms", high=10.0),))
    results = [Result((i,), 1.0, {"error": e, "ms": ms}) for i, (e, ms) in enumerate([(1.0, 30.0), (9.0, 9.0), (5.0, 20.0)])]
    assert front(problem, results) == [1]
    assert ranks(problem.costs(results), problem.violations(results)).tolist() == [2, 0, 1]
