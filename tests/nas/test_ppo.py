"""One rollout through our PPO loss and through stable-baselines3's own training step: the same loss, the same gradient."""

from typing import Any

import numpy as np
import pytest
import torch

from paredown.nas.problem import Problem, Result
from paredown.nas.strategies.policy import Policy
from paredown.nas.strategies.ppo import PPO, Coefficients, Rollout, loss
from tests.nas.toys import toy

SIZES = (3, 8, 8)
COUNT = 16


def rollout(policy: Policy) -> Rollout:
    """Drawn by the policy as it was, which has moved since: some ratios lie outside the clip."""
    draw = torch.Generator().manual_seed(5)
    actions = torch.stack([torch.randint(0, size, (COUNT,), generator=draw) for size in SIZES], dim=1)
    rewards = torch.randn(COUNT, generator=draw)
    with torch.no_grad():
        now, _ = policy.evaluate(actions)
        old = now + 0.3 * torch.randn(COUNT, generator=draw)
    return Rollout(actions, old, rewards, rewards - 0.25)


def reference(policy: Policy, critic: float, data: Rollout) -> tuple[float, torch.Tensor, float]:
    """Loss, gradient in the logits (one vector, option after option) and in the critic, of stable-baselines3."""
    gymnasium = pytest.importorskip("gymnasium")
    baselines = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import configure

    class Bandit(gymnasium.Env):  # type: ignore[misc, name-defined]
        observation_space = gymnasium.spaces.Box(1, 1, (1,), np.float32)
        action_space = gymnasium.spaces.MultiDiscrete(SIZES)

        def reset(self, **_options: Any) -> tuple[Any, dict[str, Any]]:
            return np.ones(1, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return np.ones(1, np.float32), 0.0, True, False, {}

    theirs = baselines.PPO(
        "MlpPolicy", Bandit(), n_steps=COUNT, batch_size=COUNT, n_epochs=1, learning_rate=0.0, clip_range=0.2, ent_coef=0.01,
        vf_coef=0.5, max_grad_norm=1e9, device="cpu", policy_kwargs={"net_arch": []},
    )  # fmt: skip
    theirs.set_logger(configure(None, []))
    valid = policy.logits.detach()[~policy.mask]
    with torch.no_grad():
        theirs.policy.action_net.weight.zero_()
        theirs.policy.action_net.bias.copy_(valid)
        theirs.policy.value_net.weight.zero_()
        theirs.policy.value_net.bias.fill_(critic)
    buffer = theirs.rollout_buffer
    buffer.reset()
    for i in range(COUNT):
        buffer.add(
            np.ones((1, 1)),
            data.actions[i : i + 1].numpy(),
            np.zeros(1),
            np.ones(1),
            torch.zeros(1),
            data.old_log_probability[i : i + 1],
        )
    buffer.advantages = data.advantages.numpy().reshape(COUNT, 1).copy()
    buffer.returns = data.rewards.numpy().reshape(COUNT, 1).copy()
    theirs.train()
    return (
        theirs.logger.name_to_value["train/loss"],
        theirs.policy.action_net.bias.grad.clone(),
        float(theirs.policy.value_net.bias.grad),
    )


def test_loss_and_gradient_are_those_of_stable_baselines3() -> None:
    policy = Policy(toy(), seed=0)
    with torch.no_grad():
        policy.logits.copy_(torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(1)))
    critic = torch.nn.Parameter(torch.tensor(0.4))
    data = rollout(policy)
    value = loss(policy, critic, data, Coefficients(clip=0.2, value=0.5, entropy=0.01))
    value.backward()
    expected, gradient, critic_gradient = reference(policy, 0.4, data)
    assert policy.logits.grad is not None and critic.grad is not None
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(policy.logits.grad[~policy.mask], gradient, atol=1e-6)
    assert float(critic.grad) == pytest.approx(critic_gradient, abs=1e-6)
    assert gradient.abs().max() > 1e-3


def test_options_that_a_dimension_lacks_are_never_drawn() -> None:
    policy, random = Policy(toy(), seed=0), np.random.default_rng(0)
    drawn = np.array([policy.sample(random) for _ in range(500)])
    assert (drawn.max(0) == np.array(SIZES) - 1).all()


def test_updates_raise_the_probability_of_what_was_rewarded() -> None:
    problem = Problem(toy())
    strategy = PPO(problem, rollout=8)
    before, _ = strategy.policy.evaluate(torch.tensor([[1, 5, 2]]))
    near = [(1, 5, 2), (1, 5, 3), (1, 4, 2), (1, 6, 2), (0, 0, 7), (2, 1, 6), (0, 7, 0), (2, 0, 5)]
    strategy.tell([Result(a, 1.0, {"accuracy": 90.0 if i < 4 else 50.0}) for i, a in enumerate(near)])
    after, _ = strategy.policy.evaluate(torch.tensor([[1, 5, 2]]))
    assert after.item() > before.item() + 0.1
