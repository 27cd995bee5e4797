"""From values per index of each slice to one score per atom of a group, and from groups to one scale.

slices of a group: (tensor, dimension, atoms (k,), positions (k,)); values of a slice: one per index of its dimension, (n,).
An index may have several owners: each gets its whole value, since each removes it.

Two scales, so that groups compare (`pruning/scores.py` says which criterion takes which):
    relative: divided by the mean of the group. "Half of the typical value" means the same everywhere. For scores whose
        unit differs from layer to layer (norms, activations, bare gradients), or that don't add up over atoms (OBD, OBS, LAMP).
    shared: all groups divided by one number, the mean over all atoms. For scores that are in one unit everywhere: the
        objective's, in which they add up (Taylor, Fisher), or that of a normalized output (batch-norm scales).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from paredown.graph.groups import Group, Slice

_TINY = 1e-30


def per_index(values: Tensor, dimension: int) -> Tensor:
    """Elementwise values, summed over every other dimension: (..., n, ...) -> (n,)."""
    return values.sum([d for d in range(values.dim()) if d != dimension]) if values.dim() > 1 else values


def per_atom(group: Group, slices: Iterable[Slice], values: Callable[[Slice], Tensor]) -> Tensor:
    """(size,) float64: for each atom the sum of the values of every index that it owns in these slices."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for part in slices:
        found = values(part).detach().to("cpu", torch.float64)
        total.index_add_(0, torch.from_numpy(part.atoms), found[torch.from_numpy(part.positions)])
    return total


def matrices(group: Group, weights: Mapping[str, Tensor]) -> list[Slice]:
    """The slices of parameters of 2 dimensions and more: kernels and matrices, without biases, scales and buffers."""
    return [s for s in group.slices if s.tensor in weights and weights[s.tensor].dim() > 1]


def readers(group: Group) -> list[Slice]:
    """The slices by zeroing which a group's atoms are masked: its consumers.

    The width of queries and keys is read by no weight: rows of both sides of the product stand in, of which one side is enough.
    """
    consumers = [s for s in group.slices if s.consumer]
    if 0 < len(consumers) < len(group.slices):
        return consumers
    first = group.slices[0].tensor.rpartition(".")[0]
    return [s for s in group.slices if s.tensor.rpartition(".")[0] == first]


def relative(scores: Tensor) -> Tensor:
    """(size,) of mean 1."""
    return scores / scores.mean().clamp_min(_TINY)


def shared(scores: Sequence[Tensor]) -> list[Tensor]:
    """Each (size,); the mean over the atoms of all groups is 1."""
    mean = torch.cat(list(scores)).abs().mean().clamp_min(_TINY) if scores else 1.0
    return [s / mean for s in scores]
