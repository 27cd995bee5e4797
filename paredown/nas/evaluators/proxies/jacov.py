"""Jacobian covariance (Mellor et al., arXiv:2006.04647v1, eq. 2-4): how uncorrelated the gradients of the samples' outputs are.

J (batch, inputs): the gradient of each sample's summed output in its input. With the eigenvalues l of their correlation matrix
the score is -sum(log(l + k) + 1 / (l + k)), k = 1e-5.
"""

import torch
from torch import Tensor, nn

from paredown.nas.evaluators.proxies.copied import copied

_K = 1e-5


def jacov(model: nn.Module, inputs: Tensor) -> float:
    """inputs (batch, ...), 2 or more samples; the model in training mode. -inf where a gradient doesn't vary over its input."""
    x = inputs.detach().clone().requires_grad_(True)
    copied(model, training=True)(x).sum().backward()
    jacobian = torch.zeros_like(x) if x.grad is None else x.grad
    rows = jacobian.flatten(1).double()
    rows = rows - rows.mean(1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        return -float("inf")
    values = torch.linalg.eigvalsh((rows / length) @ (rows / length).T)
    return -float((values + _K).log().sum() + (1 / (values + _K)).sum())
