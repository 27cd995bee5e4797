"""Jacobian covariance (Mellor et al., arXiv:2006.04647v1, eq. 2-4): how uncorrelated the gradients of the samples' outputs are.

J (batch, inputs): the gradient of each sample's summed output in its input. With the eigenvalues l of their correlation matrix
the score is -sum(log(l + k) + 1 / (l + k)), k = 1e-5.
"""

import torch
from torch import nn

from paredown.nas.evaluators.proxies.copied import copied, require_numbers
from paredown.task.batches import Inputs, apply_tensors, call, tensors

_K = 1e-5


def jacov(model: nn.Module, inputs: Inputs) -> float:
    """inputs: floating-point, 2 or more samples; the model in training mode. -inf where a gradient is the same for all inputs."""
    require_numbers("jacov", inputs)
    x = apply_tensors(inputs, lambda t: t.detach().clone().requires_grad_(True))
    torch.stack([t.sum() for t in tensors(call(copied(model, training=True), x))]).sum().backward()  # type: ignore[no-untyped-call]
    jacobian = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors(x)]
    rows = torch.cat([gradient.flatten(1).double() for gradient in jacobian], dim=1)
    rows = rows - rows.mean(1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        return -float("inf")
    values = torch.linalg.eigvalsh((rows / length) @ (rows / length).T)
    return -float((values + _K).log().sum() + (1 / (values + _K)).sum())
