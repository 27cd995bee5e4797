"""A strategy that begins with given architectures: those that a proxy or a halving found good, or the user's own."""

import functools
from collections.abc import Sequence

from paredown.core.errors import SearchError
from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.space import Architecture
from paredown.nas.strategies.strategy import State, Strategy, StrategyFactory
from paredown.nas.strategies.surrogate import Surrogate


class Starting:
    """They are proposed first, each once; the inner strategy is told what came of them and goes on."""

    def __init__(self, problem: Problem, *, inner: StrategyFactory, architectures: Sequence[Architecture]) -> None:
        self.inner: Strategy = inner(problem)
        self.lowest = problem.fidelities[0]
        for architecture in architectures:
            problem.space.values(architecture)
        forbidden = [architecture for architecture in architectures if not problem.space.allows(architecture)]
        if forbidden:
            raise SearchError("a search starts with architectures of its space", got=forbidden[0], remedy="leave it out")
        different: dict[Architecture, Architecture] = {}
        for architecture in architectures:
            different.setdefault(problem.space.canonicalize(architecture), architecture)
        self.left = list(different.values())

    def ask(self, n: int) -> list[Proposal]:
        first, self.left = self.left[:n], self.left[n:]
        return [Proposal(architecture, self.lowest) for architecture in first] or self.inner.ask(n)

    def tell(self, results: Sequence[Result]) -> None:
        self.inner.tell(results)

    def state_dict(self) -> State:
        return {"inner": self.inner.state_dict(), "left": list(map(list, self.left))}

    def load_state_dict(self, state: State) -> None:
        self.inner.load_state_dict(state["inner"])
        self.left = [tuple(architecture) for architecture in state["left"]]


def starting_with(architectures: Sequence[Architecture], strategy: StrategyFactory = Surrogate) -> StrategyFactory:
    """`search(..., strategy=starting_with(found))`. architectures: indices of the space, as results have them.

    The search raises SearchError, SearchSpaceError for one that isn't of its space.
    """
    return functools.partial(Starting, inner=strategy, architectures=tuple(map(tuple, architectures)))
