"""First-order Taylor importance (Molchanov et al., arXiv:1611.06440 eq. 7; arXiv:1906.10771 eq. 8).

Removing an atom zeroes the weights S by which its consumers read it, so to first order an objective f changes by
    delta f = -sum_{w in S} w * df/dw
which is exactly the first-order effect of the mask; summing over producers as well would count it twice.
Squares of it are averaged over batches, so that signs don't cancel. They are in the square of the objective's unit in every
group, so groups compare; divided by the MACs that an atom saves they say what a budget buys cheapest (`prune.py`).
"""

from collections.abc import Mapping

from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import per_atom, per_index


def taylor(group: Group, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64, at least 0: how far one batch's objective moves without each atom of the group.

    weights, gradients: of each parameter of the group, by name, of equal shapes; a parameter without a gradient counts 0.
    """
    consumers = [s for s in group.slices if s.consumer and s.tensor in gradients]
    return per_atom(group, consumers, lambda s: per_index(weights[s.tensor] * gradients[s.tensor], s.dimension)).abs()
