"""Magnitude importance: the L2 norm of all weights that go with an atom (Li et al., arXiv:1608.08710: L1, and filters only).

    I = sqrt(sum_{w in producers and consumers} w^2)
Norms of layers of different width don't compare; relative to the group's mean, "half the typical norm" means the same everywhere.
"""

from collections.abc import Mapping

from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import matrices, per_atom, per_index


def magnitude(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64, at least 0. weights: parameters by name; vectors and buffers don't count."""
    return per_atom(group, matrices(group, weights), lambda s: per_index(weights[s.tensor].square(), s.dimension)).sqrt()
