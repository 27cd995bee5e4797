"""Several fidelities: whatever the strategy, what is chosen was evaluated at the highest. And where a search begins."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

import paredown
from paredown.core.errors import SearchError, SearchSpaceError
from paredown.nas import PPO, ActiveIf, Choice, Forbid, Genetic, Limit, Random, Space, starting_with
from paredown.nas.evaluators.evaluator import Job, Outcome
from paredown.nas.evaluators.executor import Serial
from paredown.nas.outcome import SearchResult
from paredown.nas.problem import Problem, Proposal, Result, SearchEffort, Source
from paredown.nas.search import evaluated, strategy_of
from paredown.nas.strategies.strategy import StrategyFactory
from paredown.nas.strategies.surrogate import Surrogate
from tests.nas.toys import score, toy


@dataclass(frozen=True)
class Short:
    """A short training favours small b; seconds are those of the fidelity, or 1 throughout."""

    even: bool = False
    source: Source = "function"
    fidelities: tuple[float, ...] = (0.1, 1.0)
    name: str = "short"

    def evaluate(self, job: Job) -> Outcome:
        found = score(job.values)
        found["accuracy"] -= (1 - job.fidelity) * float(job.values["b"])
        return Outcome(found, 1.0 if self.even else 10 * job.fidelity)


def counted(found: SearchResult) -> Counter[float]:
    return Counter(result.fidelity for result in found.history)


@pytest.mark.parametrize("strategy", [PPO, Genetic, Random, functools.partial(PPO, rollout=4), Surrogate])
@pytest.mark.parametrize("effort", [6, 15, 30, 99])
def test_the_last_third_is_in_full(strategy: StrategyFactory, effort: int) -> None:
    found = paredown.search(toy(), Short(), strategy=strategy, effort=effort)
    assert counted(found) == {0.1: effort - effort // 3, 1.0: effort // 3}
    full = {result.architecture for result in found.history if result.fidelity == 1.0}
    assert found.best.fidelity == 1.0 and found.best.architecture in full
    assert {each.architecture for each in found.front} <= full
    assert found.strategy in {"PPO", "Genetic", "Random", "Surrogate"}


@pytest.mark.parametrize("strategy", [Random, Surrogate])
def test_seconds_are_spent_though_no_full_evaluation_seems_to_fit(strategy: StrategyFactory) -> None:
    found = paredown.search(toy(), Short(even=True), strategy=strategy, effort="12 s")
    assert len(found.history) == 12


def test_a_state_with_several_fidelities_carries_on_alike() -> None:
    problem = Problem(toy(), effort=SearchEffort(30), fidelities=(0.1, 1.0))
    executor, one, other = Serial(Short()), strategy_of(Genetic, problem), strategy_of(Genetic, problem)
    for _ in range(24):
        one.tell(evaluated(problem, one.ask(1), executor, None))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert one.ask(3) == other.ask(3) != []


class Own:
    """A strategy of the user's that chooses fidelities by itself."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.random, self.told = problem, Random(problem), list[Result]()

    def ask(self, n: int) -> list[Proposal]:
        return [dataclasses.replace(p, fidelity=(0.1, 1.0)[len(self.told) % 2]) for p in self.random.ask(n)]

    def tell(self, results: Sequence[Result]) -> None:
        self.told += results


def test_a_strategy_of_the_users_is_left_to_itself() -> None:
    made: list[Own] = []
    found = paredown.search(toy(), Short(), strategy=lambda problem: made.append(Own(problem)) or made[0], effort=30)
    assert list(found.history) == made[0].told and counted(found) == {0.1: 15, 1.0: 15}


def test_architectures_that_are_one_begin_a_search_once() -> None:
    space = Space((Choice("a", ("x", "y")), Choice("b", (0, 1, 2))), (ActiveIf("b", "a", ("y",)),))
    found = paredown.search(space, lambda values: float(values["b"]), strategy=starting_with([(0, 0), (0, 1), (0, 2)]), effort=3)
    assert found.history[0].architecture == (0, 0) and all(space.values(r.architecture)["a"] == "y" for r in found.history[1:])


@pytest.mark.parametrize("strategy", [Surrogate, Random])
def test_a_search_begins_where_it_is_told_to(strategy: StrategyFactory) -> None:
    first = [(1, 7, 2), (1, 0, 0), (1, 7, 2), (2, 3, 3)]
    found = paredown.search(toy(), score, strategy=starting_with(first, strategy), effort=20)
    assert [result.architecture for result in found.history[:3]] == [(1, 7, 2), (1, 0, 0), (2, 3, 3)]
    assert len({result.architecture for result in found.history}) == 20 and found.strategy == strategy.__name__
    both = paredown.search(toy(), Short(), strategy=starting_with(first, strategy), effort=15)
    assert counted(both) == {0.1: 10, 1.0: 5}


def test_what_a_search_cannot_begin_with_is_told() -> None:
    space = Space(toy().dimensions, (Forbid({"a": ("x",), "b": (0,)}),))
    for wrong, error in (([(0, 0, 0)], SearchError), ([(9, 9, 9)], SearchSpaceError)):
        with pytest.raises(error, match=r"of its space|one index a dimension"):
            paredown.search(space, score, strategy=starting_with(wrong), effort=3)


def test_a_limit_holds_at_the_highest_fidelity() -> None:
    found = paredown.search(toy(), Short(), strategy=Random, effort=60, limits=(Limit("cost", high=5.0),))
    assert found.feasible and found.best.fidelity == 1.0 and found.best.validation["cost"] <= 5.0
