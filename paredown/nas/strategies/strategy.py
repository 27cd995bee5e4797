"""What every search strategy is: ask for proposals, tell what came of them, and carry on from a state that is plain data."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from paredown.nas.problem import Problem, Proposal, Result

State: TypeAlias = dict[str, Any]


class Strategy(Protocol):
    """The same seed, the same calls and the same results give the same proposals.

    A strategy never proposes two architectures that the space calls the same, at one fidelity, unless it was told to
    (`unique=False`).
    """

    def ask(self, n: int) -> list[Proposal]:
        """At most n proposals; fewer, or none, when the strategy has nothing new to propose."""
        ...

    def tell(self, results: Sequence[Result]) -> None:
        """Results of proposals, in any order, of any number; failed ones too."""
        ...

    def state_dict(self) -> State:
        """Numbers, strings, lists and dicts only: it goes through JSON."""
        ...

    def load_state_dict(self, state: State) -> None:
        """The inverse, on a strategy made with the same problem and options."""
        ...


StrategyFactory: TypeAlias = Callable[[Problem], Strategy]
