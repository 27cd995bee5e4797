"""Domination, fronts, crowding, hypervolume (Deb et al., NSGA-II, IEEE TEC 2002). Costs are (n, objectives), smaller better."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.nas.problem import Problem, Result, Vector

Matrix: TypeAlias = NDArray[np.float64]


def dominated_by(costs: Matrix, violations: Vector) -> NDArray[np.bool_]:
    """(n, n): [i, j] where j dominates i. A feasible one dominates any other, of two infeasible ones the lesser violation."""
    no_worse = (costs[None] <= costs[:, None]).all(2)
    better = (costs[None] < costs[:, None]).any(2)
    feasible = violations <= 0
    both = feasible[:, None] & feasible[None]
    less = violations[None] < violations[:, None]
    found: NDArray[np.bool_] = np.where(both, no_worse & better, less)
    return found


def ranks(costs: Matrix, violations: Vector) -> NDArray[np.int64]:
    """(n,): 0 on the front, 1 on the front of the rest, and so on."""
    dominated = dominated_by(costs, violations)
    rank = np.full(len(costs), -1, dtype=np.int64)
    left = np.ones(len(costs), dtype=bool)
    level = 0
    while left.any():
        front = left & ~(dominated & left[None]).any(1)
        rank[front], left[front] = level, False
        level += 1
    return rank


def crowding(costs: Matrix) -> Vector:
    """(n,): the mean side of the box between each point's neighbors on a front; infinite at the ends."""
    distance = np.zeros(len(costs))
    for column in costs.T:
        order = np.argsort(column, kind="stable")
        ends = column[order[[0, -1]]]
        span = float(ends[1] - ends[0]) if np.isfinite(ends).all() else 0.0
        distance[order[[0, -1]]] = np.inf
        if len(order) > 2 and span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def front(problem: Problem, results: Sequence[Result]) -> list[int]:
    """Indices of the results that no other dominates and that keep the limits, best in the first objective first; ties once."""
    costs, violations = problem.costs(results), problem.violations(results)
    alive = np.flatnonzero(violations <= 0)
    if len(alive) == 0:
        return []
    kept = alive[~dominated_by(costs[alive], violations[alive]).any(1)]
    unique = {tuple(costs[i]): int(i) for i in reversed(kept)}
    return [unique[key] for key in sorted(unique)]


def nondominated(costs: Matrix) -> NDArray[np.int64]:
    """Indices of the points that no other dominates, for many points and a short front; of equal points the first."""
    order = np.argsort(costs.sum(1), kind="stable")
    left, kept = costs[order], []
    while len(order):
        kept.append(order[0])  # the smallest sum of what is left: nothing that is left dominates it
        alive = (left < left[0]).any(1)
        order, left = order[alive], left[alive]
    return np.array(kept, dtype=np.int64)


def hypervolume(costs: Matrix, reference: Sequence[float]) -> float:
    """The volume that a set of points dominates below `reference`; exact, by slicing along the last objective."""
    bound = np.asarray(reference, dtype=np.float64)
    points = costs[(costs < bound).all(1)]
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(bound[0] - points.min())
    order = np.argsort(points[:, -1], kind="stable")
    points, edges = points[order], np.append(points[order, -1], bound[-1])
    if points.shape[1] == 2:
        lowest = np.minimum.accumulate(points[:, 0])
        return float(((bound[0] - lowest) * np.diff(edges)).sum())
    slices = [hypervolume(points[: i + 1, :-1], reference[:-1]) * (edges[i + 1] - edges[i]) for i in range(len(points))]
    return float(sum(slices))
