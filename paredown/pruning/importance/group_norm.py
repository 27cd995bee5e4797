"""Group-norm importance (DepGraph: Fang et al., arXiv:2301.12900, section 3.3).

    I_k = sum_{w in g} ||w[k]||^2,  compared between groups as  I_k * N / (sum of the N largest of the group)
over *all* parameters of the group, scales of norms and biases too, each weight counted alike. N: half of the group here, so
that a group with many dead atoms doesn't raise what its living ones score.
"""

from collections.abc import Mapping

from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import per_atom, per_index


def group_norm(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64, at least 0. weights: parameters by name."""
    slices = [s for s in group.slices if s.tensor in weights]
    return per_atom(group, slices, lambda s: per_index(weights[s.tensor].square(), s.dimension))


def relative_to_best(norms: Tensor) -> Tensor:
    """(size,) about 1 for a typical atom of the better half."""
    best = norms.topk(max(1, len(norms) // 2)).values
    return norms / best.mean().clamp_min(1e-60)
