"""Local search: go to a better neighbor until none is better, then start again (White et al., arXiv:2005.02960).

It starts from the best of a few random architectures and asks for the neighbors of where it stands in random order. `greedy`: it
moves as soon as one is better; otherwise all neighbors are evaluated and it moves to the best.
"""

from collections.abc import Sequence

import numpy as np

from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.scores import random_weights, scores
from paredown.nas.space import Architecture
from paredown.nas.strategies.memory import Memory, at_least, dump, restore
from paredown.nas.strategies.strategy import State


class LocalSearch:
    """With several objectives each start weighs them anew, at random."""

    def __init__(self, problem: Problem, *, starts: int = 10, greedy: bool = True, unique: bool = True) -> None:
        self.memory = Memory(problem, unique=unique)
        self.starts, self.greedy = at_least("starts", starts, 1), greedy
        self.known: list[Result] = []
        self._restart()

    def _restart(self) -> None:
        self.at: Result | None = None
        self.todo: list[Architecture] = []
        self.pending = 0
        self.round: list[Result] = []
        self.drawn = 0
        problem = self.memory.problem
        self.weights = None if len(problem.objectives) == 1 else random_weights(problem, self.memory.random)

    def ask(self, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        while len(proposals) < n:
            fresh = self._next()
            if not fresh:
                break
            proposals += fresh
        self.pending += len(proposals)
        return proposals

    def _next(self) -> list[Proposal]:
        if self.at is None:
            if self.drawn >= self.starts and self.pending > 0:
                return self.memory.propose(1, self.memory.uniform)
            self.drawn += 1
            return self.memory.propose(1, self.memory.uniform)
        while self.todo:
            candidate = self.todo.pop()
            key = self.memory.problem.space.canonicalize(candidate)
            if key not in self.memory.seen:
                self.memory.seen.add(key)
                return [Proposal(candidate, self.memory.problem.fidelities[0])]
        if self.pending == 0 and self.greedy:
            self._restart()
        return self.memory.propose(1, self.memory.uniform)

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)
        self.pending = max(0, self.pending - len(results))
        self.round += results
        self.known += results
        if self.at is None:
            if len(self.round) >= self.starts:
                self._move(self._best(self.round))
            return
        best = self._best([self.at, *self.round])
        moved = best is not self.at
        if moved and (self.greedy or (not self.todo and self.pending == 0)):
            self._move(best)
        elif not self.todo and self.pending == 0:
            self._restart()

    def _best(self, results: Sequence[Result]) -> Result:
        """The first of the best; several objectives are scaled over all that is known."""
        scale = [] if self.weights is None else self.known
        value = scores(self.memory.problem, [*results, *scale], self.weights)[: len(results)]
        return results[int(np.argmax(value))]

    def _move(self, best: Result) -> None:
        self.at, self.round = best, []
        self.todo = self.memory.problem.space.neighbors(best.architecture)
        order = self.memory.random.permutation(len(self.todo))
        self.todo = [self.todo[i] for i in order]

    def state_dict(self) -> State:
        return {
            "memory": self.memory.state_dict(),
            "known": dump(self.known),
            "round": dump(self.round),
            "at": None if self.at is None else dump([self.at])[0],
            "todo": [list(architecture) for architecture in self.todo],
            "pending": self.pending,
            "drawn": self.drawn,
            "weights": None if self.weights is None else self.weights.tolist(),
        }

    def load_state_dict(self, state: State) -> None:
        self.memory.load_state_dict(state["memory"])
        self.known, self.round = restore(state["known"]), restore(state["round"])
        self.at = None if state["at"] is None else restore([state["at"]])[0]
        self.todo = [tuple(architecture) for architecture in state["todo"]]
        self.pending, self.drawn = state["pending"], state["drawn"]
        self.weights = None if state["weights"] is None else np.array(state["weights"])
