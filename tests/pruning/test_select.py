"""Selection on bare arrays: goals, floors, multiples, scopes."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.core.errors import NothingToPruneError
from paredown.graph.units import allowed_counts
from paredown.pruning.select import Keep, below, select


def total(keep: Sequence[Keep]) -> float:
    return float(sum(k.sum() for k in keep))


def allowed(scores: Sequence[np.ndarray], floor: float = 0.1, round_to: int = 1) -> list[tuple[int, ...]]:
    return [allowed_counts(len(s), floor, round_to) for s in scores]


def test_the_least_important_atoms_go_first_whatever_their_group() -> None:
    scores = [np.array([5.0, 1.0, 4.0]), np.array([2.0, 6.0, 3.0])]
    keep = select(scores, total, 4, allowed(scores))
    assert [k.tolist() for k in keep] == [[True, False, True], [False, True, True]]


def test_uniform_takes_the_same_fraction_of_each_group() -> None:
    scores = [np.arange(8.0), 100 + np.arange(16.0)]
    keep = select(scores, total, 12, allowed(scores), "uniform")
    assert [int(k.sum()) for k in keep] == [4, 8]
    assert keep[0].tolist() == [False] * 4 + [True] * 4


def test_widths_are_multiples_where_the_group_is_large_enough() -> None:
    random = np.random.default_rng(0)
    scores = [random.random(16), random.random(30), random.random(3)]
    keep = select(scores, total, 25, allowed(scores, round_to=4))
    counts = [int(k.sum()) for k in keep]
    assert counts[0] % 4 == 0 and (counts[1] % 4 == 0 or counts[1] == 30) and 21 < sum(counts) <= 25


@pytest.mark.parametrize(
    ("size", "floor", "round_to", "expected"),
    [
        (16, 0.1, 4, (4, 8, 12, 16)),
        (16, 0.5, 4, (8, 12, 16)),
        (4, 0.1, 4, (1, 2, 3, 4)),
        (6, 0.0, 4, (4, 6)),
        (3, 0.5, 1, (2, 3)),
        (10, 0.1, 1, tuple(range(1, 11))),
        (5, 1.0, 1, (5,)),
    ],
)
def test_allowed_counts(size: int, floor: float, round_to: int, expected: tuple[int, ...]) -> None:
    assert allowed_counts(size, floor, round_to) == expected


@pytest.mark.parametrize(
    ("size", "ceiling", "round_to", "whole", "expected"),
    [
        (16, 0.5, 4, None, (4, 8)),
        (16, 0.75, 8, None, (8,)),
        (12, 0.5, 8, None, (6,)),
        (8, 0.5, 4, 16, (4, 8)),
        (8, 0.25, 1, 16, (2, 3, 4)),
        (8, 1.0, 4, 16, (4, 8)),
    ],
)
def test_a_ceiling_caps_the_counts_as_a_fraction_of_the_original(
    size: int, ceiling: float, round_to: int, whole: int | None, expected: tuple[int, ...]
) -> None:
    assert allowed_counts(size, 0.1, round_to, ceiling=ceiling, whole=whole) == expected


def test_a_group_that_was_cut_to_one_multiple_keeps_it() -> None:
    assert allowed_counts(8, 0.1, 8, whole=16) == (8,)
    assert allowed_counts(8, 0.1, 8, first=16) == (8,)
    assert allowed_counts(8, 0.1, 8) == tuple(range(1, 9))


def test_a_ceiling_holds_even_where_the_goal_asks_for_less() -> None:
    scores = [np.arange(8.0), 100 + np.arange(8.0)]
    counts = [allowed_counts(8, 0.1, 1, ceiling=0.5)] * 2
    assert [int(k.sum()) for k in select(scores, total, 15, counts)] == [4, 4]
    assert [int(k.sum()) for k in select(scores, total, 6, counts)] == [2, 4]
    assert [int(k.sum()) for k in below(scores, 50, counts)] == [1, 4]


def test_a_goal_below_the_floors_names_the_least_reachable_ratio() -> None:
    scores = [np.arange(10.0)]
    with pytest.raises(NothingToPruneError, match=r"0\.1x asked, 0\.5x reachable; ask for at least 0\.5x"):
        select(scores, total, 1, allowed(scores, floor=0.5))


def test_a_threshold_removes_exactly_what_lies_below_it() -> None:
    scores = [np.array([0.1, 0.9, 0.5]), np.array([0.7, 0.8])]
    keep = below(scores, 0.5, allowed(scores))
    assert [k.tolist() for k in keep] == [[False, True, True], [True, True]]


def test_a_threshold_leaves_the_floor_of_a_group_that_lies_below_it_whole() -> None:
    assert below([np.array([0.1, 0.3, 0.2, 0.0])], 1.0, [(2, 3, 4)])[0].tolist() == [False, True, True, False]


def test_what_still_fits_is_given_back() -> None:
    scores = [np.full(4, 1.0), np.full(4, 1.0), np.full(4, 1.0)]
    weights = np.array([5.0, 1.0, 1.0])

    def cost(keep: Sequence[Keep]) -> float:
        return float(sum(w * k.sum() for w, k in zip(weights, keep, strict=True)))

    keep = select(scores, cost, 22, allowed(scores), "uniform")
    assert 20 < cost(keep) <= 22


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=24), min_size=1, max_size=5),
    st.floats(0.2, 0.95), st.sampled_from([1, 2, 4]), st.sampled_from(["global", "uniform"]),
)  # fmt: skip
def test_the_goal_is_met_and_no_step_more_fits(values: list[list[float]], ratio: float, round_to: int, scope: str) -> None:
    scores = [np.array(v) for v in values]
    counts = allowed(scores, 0.1, round_to)
    goal = max(ratio * sum(map(len, scores)), sum(c[0] for c in counts))
    keep = select(scores, total, goal, counts, "uniform" if scope == "uniform" else "global")
    assert total(keep) <= goal
    for k, s, possible in zip(keep, scores, counts, strict=True):
        kept = int(k.sum())
        assert kept in possible
        assert not k.any() or k.all() or s[k].min() >= s[~k].max()
        larger = [a for a in possible if a > kept]
        assert not larger or total(keep) - kept + larger[0] > goal
