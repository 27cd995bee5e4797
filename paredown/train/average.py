"""The exponential moving average of a model's weights and buffers (Polyak averaging, arXiv:1803.05407 for networks).

shadow <- shadow + (1 - decay_t) (weights - shadow), decay_t = min(decay, (1 + t) / (10 + t)): the first steps count less.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """The average of one model while it trains. Whole-number buffers, such as a count of batches, are not averaged."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay, self._steps = decay, 0
        self._shadow = [tensor.detach().clone() for tensor in _floating(model)]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes one step's weights in."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._shadow, _floating(model), 1 - decay)

    def keep(self) -> dict[str, Tensor]:
        """What must be kept to go on later."""
        return {"steps": torch.tensor(self._steps), **{str(i): tensor for i, tensor in enumerate(self._shadow)}}

    @torch.no_grad()
    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        """Goes on from what `keep` gave."""
        self._steps = int(kept["steps"])
        for i, tensor in enumerate(self._shadow):
            tensor.copy_(kept[str(i)])

    @torch.no_grad()
    def write_(self, model: nn.Module) -> None:
        """The model takes the averaged values."""
        for tensor, value in zip(_floating(model), self._shadow, strict=True):
            tensor.copy_(value)


def _floating(model: nn.Module) -> list[Tensor]:
    every = [*model.parameters(), *model.buffers()]
    return [tensor.detach() for tensor in every if tensor.is_floating_point()]
