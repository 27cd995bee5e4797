"""REINFORCE (Williams 1992; as NAS-Bench-201 runs it, arXiv:2001.00326): follow the gradient of log p(a) * (reward - baseline).

The baseline is an exponential moving average of the rewards, momentum 0.9, corrected for its start. Official settings: one
update a result, Adam with a learning rate of 0.01, rewards in percent.
"""

from collections.abc import Sequence

import torch

from paredown.core.errors import SearchError
from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.scores import scores
from paredown.nas.space import Architecture
from paredown.nas.strategies.memory import Memory, dump, restore
from paredown.nas.strategies.policy import Policy
from paredown.nas.strategies.strategy import State

_MOMENTUM = 0.9


class Reinforce:
    """The reward is the score among all results so far (`scores`): with one objective and no limit, that objective."""

    def __init__(self, problem: Problem, *, learning_rate: float = 0.01, unique: bool = True) -> None:
        if not learning_rate > 0:
            raise SearchError("learning_rate must be positive", got=learning_rate, remedy="write learning_rate=0.01")
        self.memory = Memory(problem, unique=unique)
        self.policy = Policy(problem.space, problem.seed)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=learning_rate)
        self.known: list[Result] = []
        self.total, self.weight = 0.0, 0.0

    def ask(self, n: int) -> list[Proposal]:
        return self.memory.propose(n, self._draw)

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)
        self.known += results
        if not results:
            return
        for result, reward in zip(results, self._rewards(results), strict=True):
            self._update(result.architecture, reward)

    def _draw(self) -> Architecture:
        return self.policy.sample(self.memory.random)

    def _rewards(self, results: Sequence[Result]) -> list[float]:
        problem = self.memory.problem
        if len(problem.objectives) == 1 and not problem.limits and not any(result.failed for result in results):
            return [float(score) for score in scores(problem, results)]
        return [float(score) for score in scores(problem, self.known)[-len(results) :]]

    def _update(self, architecture: Architecture, reward: float) -> None:
        self.total = _MOMENTUM * self.total + (1 - _MOMENTUM) * reward
        self.weight = _MOMENTUM * self.weight + (1 - _MOMENTUM)
        log_probability, _ = self.policy.evaluate(torch.tensor([architecture]))
        self.optimizer.zero_grad()
        (-log_probability * (reward - self.total / self.weight)).sum().backward()  # type: ignore[no-untyped-call]  # torch has no types here
        self.optimizer.step()

    def state_dict(self) -> State:
        return {
            "memory": self.memory.state_dict(),
            "policy": self.policy.logits.tolist(),
            "optimizer": plain(self.optimizer),
            "known": dump(self.known),
            "baseline": [self.total, self.weight],
        }

    def load_state_dict(self, state: State) -> None:
        self.memory.load_state_dict(state["memory"])
        with torch.no_grad():
            self.policy.logits.copy_(torch.tensor(state["policy"]))
        restore_optimizer_(self.optimizer, state["optimizer"])
        self.known = restore(state["known"])
        self.total, self.weight = state["baseline"]


def plain(optimizer: torch.optim.Optimizer) -> list[State]:
    """Adam's moments, one entry a parameter, as lists."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [{name: value.tolist() for name, value in optimizer.state[p].items()} for p in parameters]


def restore_optimizer_(optimizer: torch.optim.Optimizer, rows: Sequence[State]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, row in zip(parameters, rows, strict=True):
        optimizer.state[parameter] = {name: torch.tensor(value) for name, value in row.items()}
