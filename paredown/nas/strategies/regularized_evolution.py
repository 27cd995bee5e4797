"""Regularized (aging) evolution (Real et al., arXiv:1802.01548, algorithm 1).

The population is a queue: of a random sample the best becomes the parent, its mutant joins at one end and the oldest leaves
at the other, however good it was. NAS-Bench-201's official settings: population 10, sample 3.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.scores import random_weights, scores
from paredown.nas.space import Architecture
from paredown.nas.strategies.memory import Memory, at_least, dump, restore
from paredown.nas.strategies.strategy import State


class RegularizedEvolution:
    """With several objectives each tournament weighs them anew, at random."""

    def __init__(self, problem: Problem, *, population: int = 10, sample: int = 3, unique: bool = True) -> None:
        self.memory = Memory(problem, unique=unique)
        self.size, self.sample = at_least("population", population, 2), at_least("sample", sample, 1)
        self.population: deque[Result] = deque(maxlen=population)

    def ask(self, n: int) -> list[Proposal]:
        return self.memory.propose(n, self._draw)

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)
        self.population.extend(results)

    def _draw(self) -> Architecture:
        first = self.memory.asked < self.size or not self.population
        return self.memory.uniform() if first else self._child()

    def _child(self) -> Architecture:
        problem, random = self.memory.problem, self.memory.random
        drawn = [self.population[i] for i in random.integers(len(self.population), size=self.sample).tolist()]
        value = scores(problem, drawn, None if len(problem.objectives) == 1 else random_weights(problem, random))
        return problem.space.mutate(drawn[int(np.argmax(value))].architecture, random)

    def state_dict(self) -> State:
        return {"memory": self.memory.state_dict(), "population": dump(list(self.population))}

    def load_state_dict(self, state: State) -> None:
        self.memory.load_state_dict(state["memory"])
        self.population = deque(restore(state["population"]), maxlen=self.size)
