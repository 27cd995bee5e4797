"""What a noisy result is worth: the measured value drawn towards a regression on all results, as far as it may be luck.

    y = f(x) + d(x) + e      f: Bayesian ridge regression on the architecture (`strategies/ridge.py`); d: what is the
                             architecture's own; e: noise of the deviation s that the evaluator states
    E[f + d | y] = m + max(0, 1 - s^2 / t^2) (y - m)      m: the regression's mean; t^2: the variance of d + e by the evidence

The posterior mean of a Gaussian process with an independent part (Rasmussen and Williams, 2006, eq. 2.23). The best of many noisy
values is the luckiest of them; the best by this is chosen less by luck. Where an evaluator states no deviation nothing changes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from paredown.nas.problem import Problem, Result, Vector
from paredown.nas.strategies.features import Matrix, features
from paredown.nas.strategies.ridge import Ridge, Scale

_LEAST = 16  # results below which a regression says too little


def expected(problem: Problem, results: Sequence[Result]) -> list[Result]:
    """The results with their noisy metrics at what is expected of another evaluation; the others as measured."""
    good = [i for i, result in enumerate(results) if not result.failed]
    asked = dict.fromkeys([o.metric for o in problem.objectives] + [limit.metric for limit in problem.limits])
    noisy = [name for name in asked if any(results[i].deviation.get(name, 0.0) > 0 for i in good)]
    if len(good) < _LEAST or not noisy:
        return list(results)
    rows = features(problem.space, [results[i].architecture for i in good], None)
    found = list(results)
    for name in noisy:
        measured = np.array([results[i].metrics[name] for i in good])
        deviation = np.array([results[i].deviation.get(name, 0.0) for i in good])
        for i, value in zip(good, shrunk(rows, measured, deviation).tolist(), strict=True):
            found[i] = dataclasses.replace(found[i], metrics={**found[i].metrics, name: value})
    return found


def shrunk(rows: Matrix, measured: Vector, deviation: Vector) -> Vector:
    """rows (n, features), measured (n,), deviation (n,): of each value's noise -> (n,), in the same unit."""
    scale, ridge = Scale.of(measured), Ridge(rows)
    target = scale.forward(measured)
    noise, variance = ridge.noise(target)
    mean = ridge.mean(rows, target)
    own = 1 - (deviation * scale.slope(measured)) ** 2 / max(noise * variance, 1e-12)
    drawn = scale.backward(mean + np.clip(own, 0, 1) * (target - mean))
    return np.where(deviation > 0, drawn, measured)
