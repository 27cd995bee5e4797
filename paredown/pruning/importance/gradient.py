"""Gradient importance: how much the objective depends on the weights of an atom, whatever their size.

    I = mean over batches of  sum_{w in S} |df/dw|
S: the weights by which the atom's consumers read it. It is the plain sensitivity of a parameter (Karnin 1990, eq. 3, at the
trained weights alone), summed over a channel. Its unit is 1/weight, which differs from layer to layer: it counts relative to
its group.
A weight of 0 can have any gradient: |w df/dw| ("taylor") is the better guide to what removing does.
f: the output along a random direction ("gradient"), or the loss ("gradient_loss").
"""

from collections.abc import Mapping

from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import per_atom, per_index, readers


def gradient(group: Group, absolute: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64, at least 0. absolute: the mean of |df/dw| over batches, by name of the parameter."""
    reading = [s for s in readers(group) if s.tensor in absolute]
    return per_atom(group, reading, lambda s: per_index(absolute[s.tensor], s.dimension))
