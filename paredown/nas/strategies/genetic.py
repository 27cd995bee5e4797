"""A genetic algorithm (Goldberg and Deb, FOGA 1991): evaluate, select by tournament, cross over, mutate; the best survive.

A child has two parents, each the best of a random tournament, with probability `crossover` a mix of both, else a copy of the
first; then it is mutated with probability `mutation`, and always where it would equal a parent. Of parents and children together
the best `population` stay.
"""

from collections.abc import Sequence

import numpy as np

from paredown.core.errors import SearchError
from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.scores import random_weights, scores
from paredown.nas.space import Architecture
from paredown.nas.strategies.memory import Memory, at_least, dump, restore
from paredown.nas.strategies.strategy import State


class Genetic:
    """With several objectives each selection weighs them anew, at random."""

    def __init__(
        self, problem: Problem, *, population: int = 20, tournament: int = 3, crossover: float = 0.5, mutation: float = 0.9
    ) -> None:
        for name, share in (("crossover", crossover), ("mutation", mutation)):
            if not 0 <= share <= 1:
                raise SearchError(f"{name} is a probability in [0, 1]", got=share, remedy=f"write {name}=0.5")
        self.memory = Memory(problem)
        self.size, self.tournament = at_least("population", population, 2), at_least("tournament", tournament, 1)
        self.crossover, self.mutation = crossover, mutation
        self.population: list[Result] = []

    def ask(self, n: int) -> list[Proposal]:
        return self.memory.propose(n, self._draw)

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)
        self.population += results
        if len(self.population) > self.size:
            order = np.argsort(-scores(self.memory.problem, self.population, self._weights()), kind="stable")
            self.population = [self.population[i] for i in order[: self.size]]

    def _draw(self) -> Architecture:
        first = self.memory.asked < self.size or len(self.population) < 2
        return self.memory.uniform() if first else self._child()

    def _child(self) -> Architecture:
        random, space = self.memory.random, self.memory.problem.space
        one, other = self._parent(), self._parent()
        child = space.crossover(one, other, random) if random.random() < self.crossover else one
        return space.mutate(child, random) if random.random() < self.mutation or child in (one, other) else child

    def _parent(self) -> Architecture:
        places = self.memory.random.integers(len(self.population), size=self.tournament)
        drawn = [self.population[i] for i in places.tolist()]
        best: Architecture = drawn[int(np.argmax(scores(self.memory.problem, drawn, self._weights())))].architecture
        return best

    def _weights(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
        problem = self.memory.problem
        return None if len(problem.objectives) == 1 else random_weights(problem, self.memory.random)

    def state_dict(self) -> State:
        return {"memory": self.memory.state_dict(), "population": dump(self.population)}

    def load_state_dict(self, state: State) -> None:
        self.memory.load_state_dict(state["memory"])
        self.population = restore(state["population"])
