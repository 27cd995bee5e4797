"""L1 importance: the sum of the absolute weights that go with an atom (Li et al., arXiv:1608.08710, section 3.1, filters only).

I = sum_{w in producers and consumers} |w|
"""

from collections.abc import Mapping

from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import matrices, per_atom, per_index


def l1(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64, at least 0. weights: parameters by name; vectors and buffers don't count."""
    return per_atom(group, matrices(group, weights), lambda s: per_index(weights[s.tensor].abs(), s.dimension))
