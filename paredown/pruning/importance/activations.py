"""What a group's activations are like over calibration batches: means per atom, taken by hooks that always come off again.

A channel is watched where its consumers read it: after activation and norm. Where no consumer is a module that runs as one
(weights used by a function, grouped convolutions, queries and keys) it is watched where it is made instead.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from paredown.graph.groups import Dimension, Group, Slice
from paredown.pruning.importance.aggregate import per_atom
from paredown.task.batches import Batch, call, fitting, tensors

Statistic = Callable[[Tensor], Tensor]


class Means:
    """A running mean per index of each watched dimension: (n,) float64."""

    def __init__(self) -> None:
        self.totals: dict[Dimension, Tensor] = {}
        self.counts: dict[Dimension, int] = {}

    def add(self, key: Dimension, values: Tensor, axis: int) -> None:
        """values (..., n, ...) with the n channels along `axis`."""
        rows = values.detach().movedim(axis, -1).flatten(0, -2)  # (samples and positions, n)
        self.totals[key] = self.totals.get(key, 0) + rows.sum(0).to("cpu", torch.float64)
        self.counts[key] = self.counts.get(key, 0) + len(rows)

    def of(self, key: Dimension) -> Tensor:
        return self.totals[key] / self.counts[key]


def channel_means(
    model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], statistic: Statistic
) -> list[Tensor | None]:
    """For each group the mean of `statistic`, an elementwise function, over all samples and positions: (size,) float64.

    None where no module that runs reads or makes the group's channels. The model runs as it is, without gradients.
    """
    means = Means()
    with watching(model, groups, statistic, means), torch.no_grad():
        for inputs, _ in batches:
            with fitting("train", inputs):
                call(model, inputs)
    return [_of_group(group, means) for group in groups]


@contextlib.contextmanager
def watching(model: nn.Module, groups: Sequence[Group], statistic: Statistic, means: Means) -> Iterator[None]:
    """While it lasts, whatever runs through the model is added to `means`. No hook is left behind, whatever happens."""
    handles: list[Any] = []
    try:
        for part in {(s.tensor, s.dimension): s for group in groups for s in group.slices}.values():
            handles += _hooked(model, part, statistic, means)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(model: nn.Module, part: Slice, statistic: Statistic, means: Means) -> list[Any]:
    path, _, name = part.tensor.rpartition(".")
    module = model.get_submodule(path)
    weight = getattr(module, name)
    if weight.dim() < 2:  # a norm or a bias: its own group is watched elsewhere
        return []
    see = partial(_see, means, (part.tensor, part.dimension), weight.shape[part.dimension], statistic)
    axis = 1 if isinstance(module, _ConvNd) else -1
    if part.consumer:
        return [module.register_forward_pre_hook(lambda _, arguments: see(arguments, axis))]
    return [module.register_forward_hook(lambda _, __, output: see(output, axis))]


def _see(means: Means, key: Dimension, size: int, statistic: Statistic, value: Any, axis: int) -> None:
    """Adds the first tensor of what went in or came out, if its channels are those of the weight's dimension."""
    found = [t for t in tensors(value) if t.is_floating_point()]
    if found and found[0].dim() > 1 and found[0].shape[axis] == size:
        means.add(key, statistic(found[0]), axis)


def _of_group(group: Group, means: Means) -> Tensor | None:
    for wanted in (True, False):
        seen = [s for s in group.slices if s.consumer is wanted and (s.tensor, s.dimension) in means.totals]
        if seen:
            owned = per_atom(group, seen, lambda s: torch.ones_like(means.of((s.tensor, s.dimension))))
            return per_atom(group, seen, lambda s: means.of((s.tensor, s.dimension))) / owned.clamp_min(1)
    return None
