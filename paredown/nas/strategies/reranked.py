"""A strategy of ours where the evaluator has several fidelities: it proposes at the lowest, and the last part of the effort goes
into evaluating the best at the highest, so that what is chosen was trained in full. The surrogate does so by itself, and a
strategy of the user's is left to itself.
"""

from collections.abc import Sequence

import numpy as np

from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.scores import scores
from paredown.nas.space import Architecture
from paredown.nas.strategies.memory import dump, restore
from paredown.nas.strategies.strategy import State, Strategy

_SHARE = 1 / 3  # of the effort
_ROUNDING = 1e-9


class Reranked:
    """The inner strategy is told results of the lowest fidelity alone, which it can compare."""

    def __init__(self, inner: Strategy, problem: Problem) -> None:
        self.inner, self.problem = inner, problem
        self.known: list[Result] = []
        self.ranked: set[Architecture] = set()

    def ask(self, n: int) -> list[Proposal]:
        if self._spent() < 1 - _SHARE - _ROUNDING:
            return self.inner.ask(n)
        left = self.problem.effort.amount * (1 - self._spent()) * (1 + _ROUNDING) + _ROUNDING
        found: list[Proposal] = []
        for _ in range(n):
            proposal, cost = self._full(left)
            found += [] if proposal is None else [proposal]
            left -= cost
        return found if found or self.ranked else self.inner.ask(n)  # not one full evaluation fits

    def tell(self, results: Sequence[Result]) -> None:
        self.known += results
        self.inner.tell([result for result in results if result.fidelity == self.problem.fidelities[0]])

    def _spent(self) -> float:
        effort = self.problem.effort
        spent = len(self.known) if effort.unit == "evaluations" else sum(result.seconds for result in self.known)
        return spent / effort.amount

    def _full(self, left: float) -> tuple[Proposal | None, float]:
        """The best that wasn't evaluated in full yet and still fits into what is left of the effort, and what it is to cost."""
        lowest, highest = self.problem.fidelities[0], self.problem.fidelities[-1]
        known = [result for result in self.known if result.fidelity == lowest and not result.failed]
        for i in np.argsort(-scores(self.problem, known), kind="stable").tolist() if known else []:
            cost = 1.0 if self.problem.effort.unit == "evaluations" else known[i].seconds * highest / lowest
            if known[i].architecture not in self.ranked and cost <= left:
                self.ranked.add(known[i].architecture)
                return Proposal(known[i].architecture, highest), cost
        return None, 0.0

    def state_dict(self) -> State:
        return {"inner": self.inner.state_dict(), "known": dump(self.known), "ranked": sorted(map(list, self.ranked))}

    def load_state_dict(self, state: State) -> None:
        self.inner.load_state_dict(state["inner"])
        self.known = restore(state["known"])
        self.ranked = {tuple(architecture) for architecture in state["ranked"]}
