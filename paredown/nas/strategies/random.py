"""Random search: uniform over the space. The baseline of every other strategy (Li and Talwalkar, arXiv:1902.07638)."""

from collections.abc import Sequence

from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.strategies.memory import Memory
from paredown.nas.strategies.strategy import State


class Random:
    def __init__(self, problem: Problem, *, unique: bool = True) -> None:
        self.memory = Memory(problem, unique=unique)

    def ask(self, n: int) -> list[Proposal]:
        return self.memory.propose(n, self.memory.uniform)

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)

    def state_dict(self) -> State:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.memory.load_state_dict(state["memory"])
