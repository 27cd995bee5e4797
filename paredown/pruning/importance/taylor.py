"""First-order Taylor importance (Molchanov et al., arXiv:1611.06440 eq. 7; arXiv:1906.10771 eq. 8).

Put a gate z = 1 on an atom. Removing it zeroes the weights S by which its consumers read it, so to first order an objective f
changes by
    delta f = -df/dz,   df/dz = sum_{w in S} w * df/dw
which is exactly the first-order effect of the mask; summing over producers as well would count it twice.
    I = mean over n of (df_n/dz)^2
so that signs don't cancel. It is in the square of the objective's unit in every group, so groups compare and scores add up.
f: the output along a random direction ("taylor", needs no label; n pieces of a few samples, each with a direction of its own),
or the loss ("taylor_loss"; n whole batches).
"""

from collections.abc import Mapping

from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import per_atom, per_index, readers


def gate_gradient(group: Group, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64: df/dz of one batch.

    weights, gradients: of each parameter of the group, by name, of equal shapes; a parameter without a gradient counts 0.
    """
    reading = [s for s in readers(group) if s.tensor in gradients]
    return per_atom(group, reading, lambda s: per_index(weights[s.tensor] * gradients[s.tensor], s.dimension))


def taylor(gates: Tensor) -> Tensor:
    """gates (n, size): df/dz of each -> (size,), at least 0."""
    return gates.square().mean(0)
