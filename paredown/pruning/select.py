"""Which atoms to remove, from their scores alone: the least important first, until a cost is met. Works on bare arrays.

A group keeps one of a few allowed counts (`graph/units.py`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.core.errors import NothingToPruneError
from paredown.graph.collect import Keep
from paredown.graph.units import Scores

__all__ = ["Cost", "Counts", "Keep", "Scores", "below", "select"]

Counts: TypeAlias = list[int]  # kept atoms, one number per group
Cost: TypeAlias = Callable[[Sequence[Keep]], float]


def select(
    scores: Sequence[Scores],
    cost: Cost,
    goal: float,
    allowed: Sequence[Sequence[int]],
    scope: Literal["global", "uniform"] = "global",
) -> list[Keep]:
    """For each group which atoms stay, such that `cost` of the choice is at `goal` or just under it.

    cost: never grows as more is removed. allowed: for each group the counts that it may keep, ascending (`allowed_counts`).
    scope: "global" ranks all atoms together, "uniform" takes the same fraction of each group.
    Raises NothingToPruneError where even the lowest counts cost more than the goal, naming the least reachable ratio.
    """
    order = _removal_order(scores, scope)
    ranks = [_ranks(s) for s in scores]

    def choice(counts: Counts) -> list[Keep]:
        return [rank < count for rank, count in zip(ranks, counts, strict=True)]

    def after(removals: int) -> Counts:
        gone = np.bincount(order[:removals], minlength=len(scores))
        return [_at_least(allowed[g], len(scores[g]) - int(gone[g])) for g in range(len(scores))]

    _require_reachable(cost(choice(after(len(order)))), cost(choice([len(s) for s in scores])), goal)
    low, high = 0, len(order)  # after(high) meets the goal
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(choice(after(middle))) <= goal else (middle + 1, high)
    return choice(_give_back(after(high), scores, allowed, lambda counts: cost(choice(counts)) <= goal))


def below(scores: Sequence[Scores], threshold: float, allowed: Sequence[Sequence[int]]) -> list[Keep]:
    """Keeps what scores at least `threshold`, and what the allowed counts add to that."""
    counts = [_at_least(allowed[g], int((s >= threshold).sum())) for g, s in enumerate(scores)]
    return [_ranks(s) < count for s, count in zip(scores, counts, strict=True)]


def _removal_order(scores: Sequence[Scores], scope: Literal["global", "uniform"]) -> NDArray[np.int64]:
    """The group of each atom, least important first. Uniform: by its rank within its group."""
    groups = np.concatenate([np.full(len(s), g) for g, s in enumerate(scores)])
    keys = scores if scope == "global" else [1 - (_ranks(s) + 0.5) / len(s) for s in scores]
    return groups[np.argsort(np.concatenate(keys), kind="stable")]


def _ranks(scores: Scores) -> NDArray[np.int64]:
    """0 for the most important; of equals the first is the more important."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks


def _at_least(allowed: Sequence[int], count: int) -> int:
    """The least of the allowed counts that is no less; the largest where the ceiling lies below."""
    return next((a for a in allowed if a >= count), allowed[-1])


def _give_back(
    counts: Counts, scores: Sequence[Scores], allowed: Sequence[Sequence[int]], fits: Callable[[Counts], bool]
) -> Counts:
    """Bisection stops where one more removal takes a whole step; what still fits is given back, the most important step first."""
    ordered = [np.sort(s)[::-1] for s in scores]
    while True:
        steps = [(g, next((a for a in allowed[g] if a > count), count)) for g, count in enumerate(counts)]
        worth = sorted(((ordered[g][counts[g] : more].sum(), g, more) for g, more in steps if more > counts[g]), reverse=True)
        more = next((t for _, g, m in worth if fits(t := [*counts[:g], m, *counts[g + 1 :]])), None)
        if more is None:
            return counts
        counts = more


def _require_reachable(least: float, whole: float, goal: float) -> None:
    if least > goal:
        raise NothingToPruneError(
            "the goal must be within reach of what may be removed",
            got=f"{goal / whole:.3g}x asked, {least / whole:.3g}x reachable",
            remedy=f"ask for at least {math.ceil(least / whole * 100) / 100:g}x, lower floor or round_to, or protect less",
        )
