"""Successive halving across evaluators (Jamieson and Talwalkar, arXiv:1502.07943): many by a cheap evaluator, the best of them
by the next.

A rung may be another evaluator (a proxy, then short training, then full training), or another fidelity of the same.
"""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from paredown.core.errors import SearchError
from paredown.nas.evaluators.evaluator import Evaluator, Function, Job
from paredown.nas.evaluators.executor import Executor, Serial
from paredown.nas.evaluators.store import Store, run_stored
from paredown.nas.problem import Limit, Objective, Problem, Result
from paredown.nas.scores import scores
from paredown.nas.space import Architecture, Space


@dataclass(frozen=True)
class Rung:
    """keep: how many go on. objective, limits: by which this rung's evaluator judges."""

    evaluate: "Evaluator | Function | Executor"
    keep: int
    objective: Objective = field(default_factory=lambda: Objective("accuracy", maximize=True))
    limits: tuple[Limit, ...] = ()
    fidelity: float = 1.0


def successive_halving(
    space: Space,
    architectures: Sequence[Architecture],
    rungs: Sequence[Rung],
    *,
    seed: int = 0,
    store: str | pathlib.Path | None = None,
) -> list[list[Result]]:
    """For each rung the results that it kept, best first; the next rung evaluates their architectures.

    store: a folder with a file a rung, from which a halving that was stopped goes on (ArtifactError where it is another's).
    Failed results never go on. Raises SearchError where rungs don't get smaller, or nothing is left for a rung.
    """
    _check(architectures, rungs)
    kept: list[list[Result]] = []
    left = list(architectures)
    for number, rung in enumerate(rungs):
        executor = as_executor(rung.evaluate)
        jobs = [Job(architecture, space.values(architecture), rung.fidelity, seed) for architecture in left]
        file = None if store is None else Store.of(_file(store, number), space, executor.evaluator, seed)
        results = [result for result in run_stored(executor, jobs, file) if not result.failed]
        if not results:
            raise SearchError(
                "a rung needs evaluations that succeed", got=f"none at rung {number}", remedy="run its evaluator alone"
            )
        problem = Problem(space, (rung.objective,), rung.limits)
        order = np.argsort(-scores(problem, results), kind="stable")[: rung.keep]
        kept.append([results[i] for i in order])
        left = [result.architecture for result in kept[-1]]
    return kept


def _file(folder: str | pathlib.Path, number: int) -> pathlib.Path:
    return pathlib.Path(folder) / f"rung-{number}.jsonl"


def as_executor(value: "Evaluator | Function | Executor") -> Executor:
    """An executor passes through; anything else runs serially."""
    if hasattr(value, "run") and hasattr(value, "capacity"):
        return cast(Executor, value)
    return Serial(value)


def _check(architectures: Sequence[Architecture], rungs: Sequence[Rung]) -> None:
    odd = [rung for rung in rungs if not isinstance(rung, Rung)]
    if odd:
        raise SearchError("each step of a halving is a Rung", got=type(odd[0]).__name__, remedy="write Rung(evaluate, keep=10)")
    keeps = [rung.keep for rung in rungs]
    if not architectures or not rungs:
        raise SearchError("halving needs architectures and rungs", got=(len(architectures), len(rungs)), remedy="give both")
    if keeps != sorted(keeps, reverse=True) or keeps[-1] < 1:
        raise SearchError("each rung keeps at least 1 and no more than the one before", got=keeps, remedy="write keep=30, 10, 1")
