"""NSGA-II with constraint domination (Deb et al., IEEE TEC 6(2), 2002).

Parents win a binary tournament by front, then by crowding distance. Of parents and children together the first fronts stay, the
last of them cut by crowding. A result inside the limits dominates every one outside; of two outside the nearer dominates.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paredown.nas.pareto import crowding, ranks
from paredown.nas.problem import Problem, Proposal, Result, Vector
from paredown.nas.space import Architecture
from paredown.nas.strategies.memory import Memory, at_least, dump, restore
from paredown.nas.strategies.strategy import State


class NSGA2:
    """For any number of objectives. Survivors are chosen each time that `population` children have come back."""

    def __init__(self, problem: Problem, *, population: int = 20, crossover: float = 0.9) -> None:
        self.memory = Memory(problem)
        self.size, self.crossover = at_least("population", population, 2), crossover
        self.population: list[Result] = []
        self.children: list[Result] = []
        self._rank_all()

    def ask(self, n: int) -> list[Proposal]:
        return self.memory.propose(n, self._draw)

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)
        self.children += results
        if len(self.children) >= self.size:
            everyone = self.population + self.children
            self.population = [everyone[i] for i in survivors(self.memory.problem, everyone, self.size)]
            self.children = []
            self._rank_all()

    def _rank_all(self) -> None:
        self.rank, self.distance = ranked(self.memory.problem, self.population)

    def _draw(self) -> Architecture:
        first = self.memory.asked < self.size or len(self.population) < 2
        return self.memory.uniform() if first else self._child()

    def _child(self) -> Architecture:
        random, space = self.memory.random, self.memory.problem.space
        one, other = self._parent(), self._parent()
        child = space.crossover(one, other, random) if random.random() < self.crossover else one
        return space.mutate(child, random)

    def _parent(self) -> Architecture:
        one, other = self.memory.random.integers(len(self.population), size=2).tolist()
        wins = (self.rank[one], -self.distance[one]) <= (self.rank[other], -self.distance[other])
        chosen: Architecture = self.population[one if wins else other].architecture
        return chosen

    def state_dict(self) -> State:
        return {
            "memory": self.memory.state_dict(),
            "population": dump(self.population),
            "children": dump(self.children),
        }

    def load_state_dict(self, state: State) -> None:
        self.memory.load_state_dict(state["memory"])
        self.population, self.children = restore(state["population"]), restore(state["children"])
        self._rank_all()


def ranked(problem: Problem, results: Sequence[Result]) -> tuple[NDArray[np.int64], Vector]:
    """(n,) fronts from 0, and (n,) crowding distances within them."""
    costs = problem.costs(results)
    rank, distance = ranks(costs, problem.violations(results)), np.zeros(len(results))
    for level in np.unique(rank):
        distance[rank == level] = crowding(costs[rank == level])
    return rank, distance


def survivors(problem: Problem, results: Sequence[Result], count: int) -> list[int]:
    """Indices of the `count` best by front, then by crowding."""
    rank, distance = ranked(problem, results)
    return [int(i) for i in np.lexsort((-distance, rank))[:count]]
