"""A policy over a space: one categorical distribution a dimension, from logits that are trained. Shared by REINFORCE and PPO."""

import numpy as np
import torch
from torch import Tensor, nn

from paredown.nas.space import Architecture, Space


class Policy(nn.Module):
    """logits (dimensions, most options); options that a dimension doesn't have are masked."""

    mask: Tensor

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__()
        shape = (len(space.sizes), max(space.sizes))
        generator = torch.Generator().manual_seed(seed)
        self.space = space
        self.logits = nn.Parameter(1e-3 * torch.randn(shape, generator=generator))
        self.register_buffer("mask", torch.arange(shape[1]) >= torch.tensor(space.sizes)[:, None])

    def log_probabilities(self) -> Tensor:
        """(dimensions, options), -inf where there is no option."""
        return self.logits.masked_fill(self.mask, -torch.inf).log_softmax(dim=1)

    def evaluate(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """actions (n, dimensions) -> log-probability of each architecture (n,), and the policy's entropy, a scalar."""
        log = self.log_probabilities()
        chosen = log.expand(len(actions), -1, -1).gather(2, actions[:, :, None])[:, :, 0]  # (n, dimensions)
        entropy = -(log.exp() * log.masked_fill(self.mask, 0.0)).sum()
        return chosen.sum(1), entropy

    def sample(self, random: np.random.Generator) -> Architecture:
        """One that the space's constraints allow; after 100 draws in vain one drawn uniformly."""
        cumulative = self._cumulative()
        for _ in range(100):
            places = (random.random(len(cumulative))[:, None] > cumulative).sum(1)
            drawn: Architecture = tuple(places.tolist())
            if self.space.allows(drawn):
                return drawn
        return self.space.sample(random)

    def _cumulative(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """(dimensions, options - 1): with the last column left out, a draw of 1 - epsilon stays inside."""
        with torch.no_grad():
            logits = self.logits.double().masked_fill(self.mask, -torch.inf).numpy()
        weights = np.exp(logits - logits.max(1, keepdims=True))
        cumulative = (weights.cumsum(1) / weights.sum(1, keepdims=True))[:, :-1]
        return np.where(self.mask[:, 1:].numpy(), 1.0, cumulative)
