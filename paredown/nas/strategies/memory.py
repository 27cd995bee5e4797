"""What a strategy has asked for, and its source of randomness: what all of them share."""

from collections.abc import Callable, Sequence

import numpy as np

from paredown.core.errors import SearchError
from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.space import Architecture
from paredown.nas.strategies.strategy import State

_TRIES = 100


class Memory:
    """seen: canonical architectures asked for so far. random: seeded by the problem. unique: whether each is asked for once.

    asked: how many proposals were wanted, even where none was left.
    """

    def __init__(self, problem: Problem, *, unique: bool = True) -> None:
        self.problem, self.unique = problem, unique
        self.random = np.random.default_rng(problem.seed)
        self.seen: set[Architecture] = set()
        self.asked = 0

    def new(self, draw: Callable[[], Architecture]) -> Architecture | None:
        """The first architecture from `draw` that wasn't asked for yet; after 100 tries a uniform one; None if there is none."""
        if not self.unique:
            return draw()
        for attempt in range(2 * _TRIES):
            drawn = draw() if attempt < _TRIES else self.problem.space.sample(self.random)
            key = self.problem.space.canonicalize(drawn)
            if key not in self.seen:
                self.seen.add(key)
                return drawn
        return self._left()

    def _left(self) -> Architecture | None:
        """Of a space that is nearly used up, any that is left."""
        if self.problem.space.size > 1_000_000:
            return None
        for architecture in self.problem.space.enumerate():
            key = self.problem.space.canonicalize(architecture)
            if key not in self.seen:
                self.seen.add(key)
                return architecture
        return None

    def propose(self, n: int, draw: Callable[[], Architecture]) -> list[Proposal]:
        """Up to n new ones, at the lowest fidelity."""
        proposals = []
        for _ in range(n):
            architecture = self.new(draw)
            self.asked += 1
            if architecture is not None:
                proposals.append(Proposal(architecture, self.problem.fidelities[0]))
        return proposals

    def uniform(self) -> Architecture:
        return self.problem.space.sample(self.random)

    def note(self, results: Sequence[Result]) -> None:
        """Results that nobody asked for are known as well."""
        if self.unique:
            self.seen.update(self.problem.space.canonicalize(result.architecture) for result in results)

    def state_dict(self) -> State:
        return {"seen": sorted(map(list, self.seen)), "random": self.random.bit_generator.state, "asked": self.asked}

    def load_state_dict(self, state: State) -> None:
        self.seen = {tuple(key) for key in state["seen"]}
        self.random.bit_generator.state, self.asked = state["random"], state["asked"]


def dump(results: Sequence[Result]) -> list[State]:
    """Results as plain data."""
    return [
        {
            "architecture": list(r.architecture),
            "fidelity": r.fidelity,
            "metrics": dict(r.metrics),
            "seconds": r.seconds,
            "source": r.source,
            "failed": r.failed,
            **({"deviation": dict(r.deviation)} if r.deviation else {}),
        }
        for r in results
    ]


def restore(rows: Sequence[State]) -> list[Result]:
    return [Result(**{**row, "architecture": tuple(row["architecture"])}) for row in rows]


def at_least(name: str, value: int, least: int) -> int:
    """Checks an option of a strategy. Raises SearchError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SearchError(f"{name} must be a whole number of at least {least}", got=value, remedy=f"write {name}={least}")
    return value
