"""What every strategy promises, and that each one searches."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paredown.core.errors import SearchError
from paredown.nas import cell201
from paredown.nas.evaluators.evaluator import FunctionEvaluator, Job, run_job
from paredown.nas.problem import Limit, Objective, Problem, Proposal, Result, SearchEffort
from paredown.nas.strategies.features import features
from paredown.nas.strategies.genetic import Genetic
from paredown.nas.strategies.local_search import LocalSearch
from paredown.nas.strategies.nsga2 import NSGA2
from paredown.nas.strategies.optuna import Optuna
from paredown.nas.strategies.ppo import PPO
from paredown.nas.strategies.random import Random
from paredown.nas.strategies.regularized_evolution import RegularizedEvolution
from paredown.nas.strategies.reinforce import Reinforce
from paredown.nas.strategies.strategy import Strategy
from paredown.nas.strategies.surrogate import Surrogate
from tests.nas.toys import score, toy

OURS: list[Callable[[Problem], Strategy]] = [
    Random, LocalSearch, functools.partial(LocalSearch, greedy=False), RegularizedEvolution, Genetic, NSGA2, Reinforce, PPO,
    Surrogate, functools.partial(Surrogate, capacity=sum),
]  # fmt: skip
ACCURACY = Objective("accuracy", maximize=True)
BOTH = (ACCURACY, Objective("cost"))


def name(factory: Any) -> str:
    return factory.func.__name__ + "+" if isinstance(factory, functools.partial) else factory.__name__


def results(problem: Problem, proposals: list[Proposal]) -> list[Result]:
    evaluator = FunctionEvaluator(score)
    jobs = [Job(p.architecture, problem.space.values(p.architecture), p.fidelity) for p in proposals]
    return [dataclasses.replace(run_job(evaluator, job), seconds=1.0) for job in jobs]


def played(problem: Problem, strategy: Strategy, rounds: int, n: int = 4) -> list[Result]:
    history: list[Result] = []
    for _ in range(rounds):
        found = results(problem, strategy.ask(n))
        strategy.tell(found)
        history += found
    return history


@pytest.fixture(params=OURS, ids=name)
def factory(request: pytest.FixtureRequest) -> Callable[[Problem], Strategy]:
    made: Callable[[Problem], Strategy] = request.param
    return made


@pytest.mark.parametrize("objectives", [(ACCURACY,), BOTH], ids=["one objective", "two"])
def test_the_same_seed_proposes_the_same_and_nothing_twice(
    factory: Callable[[Problem], Strategy], objectives: tuple[Objective, ...]
) -> None:
    problem = Problem(toy(), objectives, (Limit("cost", high=7.0),), seed=3)
    histories = [played(problem, factory(problem), rounds=12) for _ in range(2)]
    assert histories[0] == histories[1]
    asked = [result.architecture for result in histories[0]]
    assert len(asked) == len(set(asked)) == 48
    other = Problem(toy(), objectives, (Limit("cost", high=7.0),), seed=4)
    assert [result.architecture for result in played(other, factory(other), rounds=12)] != asked


@pytest.mark.parametrize("objectives", [(ACCURACY,), BOTH], ids=["one objective", "two"])
def test_a_state_that_went_through_json_carries_on_alike(
    factory: Callable[[Problem], Strategy], objectives: tuple[Objective, ...]
) -> None:
    problem = Problem(toy(), objectives)
    strategy = factory(problem)
    played(problem, strategy, rounds=7, n=3)
    twin = factory(problem)
    twin.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    assert played(problem, strategy, rounds=6, n=3) == played(problem, twin, rounds=6, n=3)


def test_a_space_that_is_used_up_ends_the_proposals(factory: Callable[[Problem], Strategy]) -> None:
    problem = Problem(toy())
    strategy = factory(problem)
    history = played(problem, strategy, rounds=50)
    assert len({result.architecture for result in history}) == toy().size == len(history)
    assert strategy.ask(1) == []


def test_failed_results_are_survived(factory: Callable[[Problem], Strategy]) -> None:
    problem = Problem(toy())
    strategy = factory(problem)
    for turn in range(15):
        proposals = strategy.ask(3)
        found = results(problem, proposals)
        failed = [Result(p.architecture, p.fidelity, {}, failed="out of memory") for p in proposals]
        strategy.tell(failed if turn < 2 else [failed[0], *found[1:]])
    assert len(strategy.ask(3)) == 3


def test_a_search_beats_chance(factory: Callable[[Problem], Strategy]) -> None:
    """24 to 60 of 192 architectures: the mean over 5 seeds lies above that of random search by half a point or more."""
    if factory is Random:
        pytest.skip("is chance")

    def best(made: Callable[[Problem], Strategy]) -> float:
        problems = [Problem(toy(), seed=seed) for seed in range(5)]
        return float(np.mean([max(r.metrics["accuracy"] for r in played(p, made(p), rounds=60, n=1)) for p in problems]))

    quick = functools.partial(Reinforce, learning_rate=0.1) if factory is Reinforce else factory
    assert best(quick) > best(Random) + 0.1


def test_a_limit_holds_for_the_best_of_every_strategy(factory: Callable[[Problem], Strategy]) -> None:
    """Without the limit the best has cost 6."""
    problem = Problem(toy(), (ACCURACY,), (Limit("cost", high=4.0),), seed=1)
    history = played(problem, factory(problem), rounds=20)
    feasible = [result.metrics["accuracy"] for result in history if result.metrics["cost"] <= 4]
    assert max(feasible) >= 85


def test_duplicates_are_allowed_where_they_are_asked_for() -> None:
    problem = Problem(toy())
    history = played(problem, Random(problem, unique=False), rounds=100)
    assert len({result.architecture for result in history}) < len(history) == 400


def test_the_surrogate_ends_with_its_best_at_full_fidelity() -> None:
    problem = Problem(toy(), effort=SearchEffort(60), fidelities=(0.1, 1.0))
    history = played(problem, Surrogate(problem, rerank=0.25), rounds=60, n=1)
    full = [result for result in history[:60] if result.fidelity == 1.0]
    assert len(full) == 15
    assert all(result.fidelity == 0.1 for result in history[:45])
    cheap = sorted((r.metrics["accuracy"] for r in history[:45]), reverse=True)
    assert min(r.metrics["accuracy"] for r in full[:3]) >= cheap[8]


def test_survivors_are_those_of_nsga2_in_pymoo() -> None:
    survival = pytest.importorskip("pymoo.operators.survival.rank_and_crowding").RankAndCrowding
    population = pytest.importorskip("pymoo.core.population").Population
    core = pytest.importorskip("pymoo.core.problem").Problem
    from paredown.nas.strategies.nsga2 import survivors

    values = np.random.default_rng(1).random((30, 2))  # no ties among the last to be kept, which pymoo breaks by chance
    problem = Problem(toy(), BOTH)
    mine = survivors(problem, [Result((0, 0, 0), 1.0, {"accuracy": -a, "cost": b}) for a, b in values], 12)
    kept = survival().do(core(n_var=1, n_obj=2), population.new(F=values, G=np.zeros((30, 0))), n_survive=12)
    assert {tuple(values[i]) for i in mine} == {tuple(each.F) for each in kept}


def test_optuna_proposes_through_the_same_protocol() -> None:
    pytest.importorskip("optuna")
    problem = Problem(toy(), (ACCURACY,), (Limit("cost", high=7.0),), seed=1)
    histories = [played(problem, Optuna(problem), rounds=12) for _ in range(2)]
    assert histories[0] == histories[1]
    assert len({result.architecture for result in histories[0]}) == 48


@pytest.mark.parametrize(
    "make",
    [
        lambda p: PPO(p, rollout=1),
        lambda p: RegularizedEvolution(p, population=0),
        lambda p: Surrogate(p, rerank=1.5),
        lambda p: Surrogate(p, capacity=3),  # type: ignore[arg-type]  # bad on purpose
        lambda p: Reinforce(p, learning_rate=-1.0),
        lambda _: Objective("params", "min"),  # type: ignore[arg-type]  # bad on purpose
        lambda _: Objective(3),  # type: ignore[arg-type]  # bad on purpose
        lambda _: SearchEffort(0.4),
        lambda p: Genetic(p, crossover=2.0),
        lambda _: SearchEffort.parse("ten minutes"),
        lambda _: Problem(toy(), ()),
        lambda _: Problem(toy(), fidelities=(0.0, 1.0)),
    ],
)
def test_options_that_cannot_work_are_told_with_a_remedy(make: Callable[[Problem], object]) -> None:
    with pytest.raises(SearchError, match=r"; (write|pass|leave)"):
        make(Problem(toy()))


def test_cells_that_are_one_cell_are_told_apart_where_costs_count() -> None:
    space = cell201.space()
    same = [a for a in itertools.islice(space.enumerate(), 4000) if space.canonicalize(a) == (0,) * 6]
    assert len(same) > 10  # nothing arrives at the output of any of them, and yet some compute much
    shared, own = (features(space, same, None, literal=literal) for literal in (False, True))
    assert len(np.unique(shared, axis=0)) == 1
    assert len(np.unique(own, axis=0)) == len(same)
    assert Surrogate(Problem(space, BOTH)).literal and Surrogate(Problem(space, limits=(Limit("cost", high=1.0),))).literal
    assert not Surrogate(Problem(space)).literal and not Surrogate(Problem(toy(), BOTH)).literal
