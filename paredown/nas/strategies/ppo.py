"""Proximal policy optimization (Schulman et al., arXiv:1707.06347, eq. 7 and 9) over architectures.

An architecture is one action of a bandit without states: each dimension is drawn from the policy's own categorical distribution.
Of a rollout of n architectures, with r = p(a) / p_old(a) and A the advantages normalized over the rollout,

    loss = -mean(min(r A, clip(r, 1 - c, 1 + c) A)) + v * mean((R - V)^2) - e * entropy

is minimized for several epochs, each over all n. The critic V is one number, since there is one state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paredown.core.errors import SearchError
from paredown.nas.problem import Problem, Proposal, Result
from paredown.nas.scores import scores
from paredown.nas.space import Architecture
from paredown.nas.strategies.memory import Memory, at_least, dump, restore
from paredown.nas.strategies.policy import Policy
from paredown.nas.strategies.reinforce import plain, restore_optimizer_
from paredown.nas.strategies.strategy import State


@dataclass(frozen=True)
class Rollout:
    """actions (n, dimensions) int64; old_log_probability, rewards, advantages (n,) float32."""

    actions: Tensor
    old_log_probability: Tensor
    rewards: Tensor
    advantages: Tensor


@dataclass(frozen=True)
class Coefficients:
    """clip: c. value: v. entropy: e."""

    clip: float = 0.2
    value: float = 0.5
    entropy: float = 0.01


def loss(policy: Policy, critic: Tensor, rollout: Rollout, coefficients: Coefficients) -> Tensor:
    """The scalar above. Advantages are normalized here (mean 0, standard deviation 1) where there are two or more."""
    log_probability, entropy = policy.evaluate(rollout.actions)
    advantages = rollout.advantages
    if len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = (log_probability - rollout.old_log_probability).exp()  # (n,)
    clipped = ratio.clamp(1 - coefficients.clip, 1 + coefficients.clip)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages).mean()
    value = nn.functional.mse_loss(critic.expand_as(rollout.rewards), rollout.rewards)
    return -surrogate + coefficients.value * value - coefficients.entropy * entropy


class PPO:
    """rollout: architectures between two updates. epochs: gradient steps on each rollout.

    Rewards are scores (`scores`) among all results so far, scaled to mean 0 and standard deviation 1 for the critic's sake.
    """

    def __init__(
        self, problem: Problem, *, rollout: int = 8, epochs: int = 4, learning_rate: float = 0.1,
        coefficients: Coefficients = Coefficients(), unique: bool = True,
    ) -> None:  # fmt: skip
        if not learning_rate > 0:
            raise SearchError("learning_rate must be positive", got=learning_rate, remedy="leave it out for the default")
        self.memory = Memory(problem, unique=unique)
        self.size, self.epochs = at_least("rollout", rollout, 2), at_least("epochs", epochs, 1)
        self.coefficients = coefficients
        self.policy = Policy(problem.space, problem.seed)
        self.critic = nn.Parameter(torch.zeros(()))
        self.optimizer = torch.optim.Adam([self.policy.logits, self.critic], lr=learning_rate)
        self.known: list[Result] = []
        self.pending = 0

    def ask(self, n: int) -> list[Proposal]:
        return self.memory.propose(n, self._draw)

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)
        self.known += results
        self.pending += len(results)
        if self.pending >= self.size:
            self._update(self.collect(self.pending))
            self.pending = 0

    def collect(self, count: int) -> Rollout:
        """The last `count` results as a rollout of the policy as it stands (which drew them: it learns only between rollouts)."""
        values = torch.as_tensor(scores(self.memory.problem, self.known), dtype=torch.float32)
        rewards = ((values - values.mean()) / (values.std(correction=0) + 1e-8))[-count:]
        actions = torch.tensor([result.architecture for result in self.known[-count:]])
        with torch.no_grad():
            old, _ = self.policy.evaluate(actions)
        return Rollout(actions, old, rewards, rewards - self.critic.detach())

    def _draw(self) -> Architecture:
        return self.policy.sample(self.memory.random)

    def _update(self, rollout: Rollout) -> None:
        for _ in range(self.epochs):
            self.optimizer.zero_grad()
            loss(self.policy, self.critic, rollout, self.coefficients).backward()  # type: ignore[no-untyped-call]  # torch has no types here
            self.optimizer.step()

    def state_dict(self) -> State:
        return {
            "memory": self.memory.state_dict(),
            "policy": self.policy.logits.tolist(),
            "critic": self.critic.item(),
            "optimizer": plain(self.optimizer),
            "known": dump(self.known),
            "pending": self.pending,
        }

    def load_state_dict(self, state: State) -> None:
        self.memory.load_state_dict(state["memory"])
        with torch.no_grad():
            self.policy.logits.copy_(torch.tensor(state["policy"]))
            self.critic.fill_(state["critic"])
        restore_optimizer_(self.optimizer, state["optimizer"])
        self.known, self.pending = restore(state["known"]), state["pending"]
