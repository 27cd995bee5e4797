"""From values per index of each slice to one score per atom of a group.

slices of a group: (tensor, dimension, atoms (k,), positions (k,)); values of a slice: one per index of its dimension, (n,).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from paredown.graph.groups import Group, Slice


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
