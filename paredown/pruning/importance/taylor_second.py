"""Second-order Taylor importance: the change of the loss by a mask, with curvature (LeCun et al. 1989, eq. 2, on gates).

    delta L = -dL/dz + 1/2 d2L/dz2,   z the gate of an atom
The curvature is the diagonal of the gates' Hessian, by Hutchinson's estimator: for random signs v,
    d2L/dz2_k = E[v_k (H v)_k],   (H v)_k = sum_{w in S_k} w * (H_w u),  u = v_k w on the weights S_k that read atom k
so that one product of the Hessian with a vector gives every atom of every group at once. No Gauss-Newton step: the true
Hessian, which takes two backward passes through the model.
    I = mean over n of (delta L_n)^2,   n pieces of a few samples
The mean of delta L itself would be what LeCun asks for; over a thousand samples it is mostly noise, since both terms have either
sign (ResNet-20 at 0.5x MACs, no training, 1,000 validation images: 48 % top-1 by the mean, 57 % by its size, 66 % by the square).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import readers


def taylor_second(gates: Tensor, curvatures: Tensor) -> Tensor:
    """gates, curvatures (pieces, size): dL/dz, and v_k (H v)_k -> (size,), at least 0."""
    return (0.5 * curvatures - gates).square().mean(0)


def perturbation(groups: Sequence[Group], signs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """u, by name of the parameter: each weight times the sum of the signs of the atoms that own its index.

    signs: (size,) per group, +1 or -1.
    """
    result: dict[str, Tensor] = {}
    for group, sign in zip(groups, signs, strict=True):
        for part in (s for s in readers(group) if s.tensor in weights):
            weight = weights[part.tensor]
            factor = torch.zeros(weight.shape[part.dimension], dtype=weight.dtype)
            factor.index_add_(0, torch.from_numpy(part.positions), sign[torch.from_numpy(part.atoms)].to(weight.dtype))
            shape = [-1 if d == part.dimension else 1 for d in range(weight.dim())]
            moved = weight * factor.to(weight.device).view(shape)
            result[part.tensor] = result[part.tensor] + moved if part.tensor in result else moved
    return result
