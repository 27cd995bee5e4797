"""One number a result, for strategies that compare or reward along a line: higher is better."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paredown.nas.problem import Problem, Result, Vector

_TAIL = 0.05  # ParEGO's weight of the sum beside the maximum (Knowles, IEEE TEC 2006)


def scores(problem: Problem, results: Sequence[Result], weights: Vector | None = None) -> Vector:
    """(n,). One objective: its own value, cost negated. Several: the augmented Chebyshev sum under `weights`, each objective
    scaled to [0, 1] over `results`. A result outside the limits scores below every one inside, the further out the lower.
    """
    costs, violations = problem.costs(results), problem.violations(results)
    values = -costs[:, 0] if costs.shape[1] == 1 else chebyshev(costs, weights)
    inside = violations <= 0
    if inside.all():
        return values
    known = values[np.isfinite(values)]
    span = max(float(np.ptp(known)), 1e-9) if len(known) else 1.0
    floor = float(values[inside].min()) if inside.any() else (float(known.min()) if len(known) else 0.0)
    outside = np.minimum(violations[~inside], 1e6)
    values[~inside] = floor - span * (0.1 + outside / (1 + outside))
    return values


def random_weights(problem: Problem, random: np.random.Generator) -> Vector:
    """One weight an objective, uniform on the simplex."""
    return random.dirichlet(np.ones(len(problem.objectives)))


def chebyshev(costs: NDArray[np.float64], weights: Vector | None = None) -> Vector:
    """(n, objectives), smaller better -> (n,), higher better: each objective scaled to [0, 1], the largest weighted one
    counts."""
    finite = np.isfinite(costs).all(1)
    if not finite.any():
        return np.full(len(costs), -np.inf)
    low, high = costs[finite].min(0), costs[finite].max(0)
    share = np.full(costs.shape[1], 1 / costs.shape[1]) if weights is None else weights
    scaled = share * (costs - low) / np.maximum(high - low, 1e-12)
    found: Vector = -(scaled.max(1) + _TAIL * scaled.sum(1))
    return found
