"""A search: the strategy asks, the executor evaluates, the strategy is told, until the effort is spent. Ends in a SearchResult.

Choices rest on validation metrics alone. Test metrics, where the evaluator has any, are read once, for the front.
The run is a function of its arguments: with a store, a search that was stopped goes through the same proposals again and takes
what is stored instead of evaluating it.
"""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from paredown.core.errors import SearchError
from paredown.core.progress import Progress, silent
from paredown.nas.evaluators.evaluator import Evaluator, Function, Job, Sized, Tested, Values
from paredown.nas.evaluators.executor import Executor
from paredown.nas.evaluators.halving import as_executor
from paredown.nas.evaluators.store import Store, run_stored
from paredown.nas.expected import expected
from paredown.nas.outcome import Found, Point, SearchResult, as_found, judged
from paredown.nas.pareto import front
from paredown.nas.problem import ACCURACY, Limit, Objective, Problem, Proposal, Result, SearchEffort
from paredown.nas.scores import scores
from paredown.nas.space import Space
from paredown.nas.strategies.memory import Memory
from paredown.nas.strategies.reranked import Reranked
from paredown.nas.strategies.starting import Starting
from paredown.nas.strategies.strategy import Strategy, StrategyFactory
from paredown.nas.strategies.surrogate import Surrogate

_REMEDY = "write strategy=PPO, or functools.partial(PPO, rollout=16)"
_IDLE = 3  # batches in a row from which nothing came: then the strategy has run dry


def search(
    space: Space,
    evaluate: "Evaluator | Function | Executor",
    *,
    strategy: StrategyFactory = Surrogate,
    effort: int | str | SearchEffort = 100,
    objectives: Sequence[Objective] = ACCURACY,
    limits: Sequence[Limit] = (),
    seed: int = 0,
    store: str | pathlib.Path | None = None,
) -> SearchResult:
    """As `paredown.search`, which adds what draws the result. Raises SearchError where no evaluation succeeded, or an objective
    names a metric that isn't there; ArtifactError for the store of another search.
    """
    executor = as_executor(evaluate)
    effort, fidelities = SearchEffort.parse(effort), executor.evaluator.fidelities
    capacity = executor.evaluator.size_of if isinstance(executor.evaluator, Sized) else None
    problem = Problem(space, _several(objectives), _several(limits), effort, fidelities, seed, capacity)
    asking = strategy_of(strategy, problem)
    kept = None if store is None else Store.of(store, space, executor.evaluator, seed)
    history = run(problem, asking, executor, kept)
    return conclude(problem, name_of(asking), executor.evaluator, history)


def strategy_of(strategy: StrategyFactory, problem: Problem) -> Strategy:
    """Raises SearchError where that isn't a strategy, or not with these options."""
    require_strategy(strategy)
    try:
        found = strategy(problem)
    except TypeError as error:
        raise SearchError("a strategy is made of the problem and its own options", got=str(error), remedy=_REMEDY) from error
    if not all(hasattr(found, name) for name in ("ask", "tell")):
        raise SearchError("a strategy asks and is told", got=type(found).__name__, remedy=_REMEDY)
    one_fidelity = isinstance(getattr(_innermost(found), "memory", None), Memory) and not isinstance(_innermost(found), Surrogate)
    return Reranked(found, problem) if len(problem.fidelities) > 1 and one_fidelity else found


def name_of(strategy: Strategy) -> str:
    """The class that the user named, or the default."""
    return type(_innermost(strategy)).__name__


def _innermost(strategy: Strategy) -> Strategy:
    while isinstance(strategy, Reranked | Starting):
        strategy = strategy.inner
    return strategy


def require_strategy(strategy: object) -> None:
    """Raises SearchError for what can't make a strategy, before there is a problem."""
    if not callable(strategy):
        raise SearchError("strategy must be a class of strategies, or a partial of one", got=repr(strategy), remedy=_REMEDY)


def run(
    problem: Problem, strategy: Strategy, executor: Executor, store: Store | None = None, progress: Progress = silent
) -> list[Result]:
    """All results within the effort, in the order in which the strategy asked for them."""
    history: list[Result] = []
    spent, idle = 0.0, 0
    by_seconds = problem.effort.unit == "seconds"
    while spent < problem.effort.amount and idle < _IDLE:
        room = executor.capacity if by_seconds else min(executor.capacity, int(problem.effort.amount - spent + 0.999))
        proposals = strategy.ask(room)
        idle = 0 if proposals else idle + 1
        results = evaluated(problem, proposals, executor, store)
        for result in results:
            if not result.failed:
                problem.require_metrics(result.metrics)
        inside = []
        for result in results:
            spent += result.seconds if by_seconds else 1
            if spent <= problem.effort.amount:
                inside.append(result)
        strategy.tell(inside)
        history += inside
        progress("search", min(1.0, spent / problem.effort.amount))
    return history


def evaluated(problem: Problem, proposals: Sequence[Proposal], executor: Executor, store: Store | None) -> list[Result]:
    """Results in the order of the proposals; what the store holds is taken from there."""
    jobs = [Job(p.architecture, problem.space.values(p.architecture), p.fidelity, problem.seed) for p in proposals]
    return run_stored(executor, jobs, store)


def conclude(problem: Problem, strategy: str, evaluator: Evaluator, history: Sequence[Result]) -> SearchResult:
    """The report of a history. Candidates are judged at the highest fidelity that any succeeded at, noisy ones by what is
    expected of them."""
    results = judged(history)
    if not results:
        why = history[0].failed if history else "nothing was evaluated"
        raise SearchError(
            "a search needs an evaluation that succeeds", got=why, remedy="run the evaluator on one architecture alone"
        )
    test = evaluator.test if isinstance(evaluator, Tested) else None
    if test is not None and "seed" in inspect.signature(test).parameters:
        test = functools.partial(cast(Any, test), seed=problem.seed)
    worth = expected(problem, results)
    chosen = front(problem, worth)
    best = int(scores(problem, worth).argmax())
    shown = [_tested(problem, results[i], worth[i], test) for i in chosen]
    return SearchResult(
        space=problem.space,
        objectives=problem.objectives,
        limits=problem.limits,
        effort=problem.effort,
        strategy=strategy,
        evaluator=evaluator.name,
        source=evaluator.source,
        seed=problem.seed,
        best=shown[chosen.index(best)] if best in chosen else _tested(problem, results[best], worth[best], test),
        feasible=bool(chosen),
        front=tuple(shown),
        history=tuple(history),
        curve=curve(problem, history),
    )


def curve(problem: Problem, history: Sequence[Result]) -> tuple[Point, ...]:
    """After each evaluation the best first objective so far within the limits, at that evaluation's fidelity or a higher one."""
    points: list[Point] = []
    seconds, best = 0.0, (0.0, float("inf"))
    violations = problem.violations(history)
    for i, result in enumerate(history):
        seconds += result.seconds
        if not result.failed and violations[i] <= 0:
            cost = problem.objectives[0].cost(result.metrics)
            if result.fidelity > best[0] or (result.fidelity == best[0] and cost < best[1]):
                best = (result.fidelity, cost)
        value = None if best[0] == 0 else (-best[1] if problem.objectives[0].maximize else best[1])
        points.append(Point(i + 1, seconds, value, best[0]))
    return tuple(points)


def _tested(problem: Problem, result: Result, worth: Result, test: Callable[[Values], Mapping[str, float]] | None) -> Found:
    found = as_found(problem.space, result, worth)
    if test is None:
        return found
    try:
        return dataclasses.replace(found, test=dict(test(found.values)))
    except Exception as error:  # the user's code: the search isn't lost for it
        return dataclasses.replace(found, test_failed=f"{type(error).__name__}: {error}")


def _several(value: Any) -> tuple[Any, ...]:
    """One alone is taken as a tuple of it."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)
