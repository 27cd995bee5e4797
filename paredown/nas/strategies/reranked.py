"""A strategy of ours where the evaluator has several fidelities: it proposes at the lowest, and the last part of the effort goes
into evaluating the best at the highest. The surrogate does so by itself, and a strategy of the user's is left to itself.
"""

import functools
from collections.abc import Sequence

from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.scores import scores
from paredown.nas.strategies.last_part import LastPart
from paredown.nas.strategies.memory import dump, restore
from paredown.nas.strategies.strategy import State, Strategy


class Reranked:
    """The inner strategy is told results of the lowest fidelity alone, which it can compare."""

    def __init__(self, inner: Strategy, problem: Problem, share: float = 1 / 3) -> None:
        self.inner, self.problem = inner, problem
        self.last = LastPart(problem, share)
        self.known: list[Result] = []

    def ask(self, n: int) -> list[Proposal]:
        if not self.last.has_begun(self.known):
            return self.inner.ask(n)
        full = self.last.proposals(n, self.known, functools.partial(scores, self.problem))
        return full if full or self.last.ranked else self.inner.ask(n)  # not one full evaluation fits

    def tell(self, results: Sequence[Result]) -> None:
        self.known += results
        self.inner.tell([result for result in results if result.fidelity == self.problem.fidelities[0]])

    def state_dict(self) -> State:
        return {"inner": self.inner.state_dict(), "known": dump(self.known), "ranked": sorted(map(list, self.last.ranked))}

    def load_state_dict(self, state: State) -> None:
        self.inner.load_state_dict(state["inner"])
        self.known = restore(state["known"])
        self.last.ranked = {tuple(architecture) for architecture in state["ranked"]}
