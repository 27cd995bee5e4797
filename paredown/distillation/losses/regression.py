"""Outputs that are numbers, not logits: as near to the teacher as the teacher's own spread makes matter; or bounded by it.

    L = mean((student - teacher)^2) / variance of the teacher's outputs

The variance is over the batch, for each output of its own, so that outputs in unlike units weigh the same.

Bounded (Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS 2017, section 3.3): a
regression teacher may be wrong without bound, so the student is only pulled to the target while it is not better by a margin.

    L = mean of |student - target|^2 where |student - target|^2 + margin > |teacher - target|^2, else 0
"""

import torch
from torch import Tensor

from paredown.distillation.losses.shapes import same_shape

_REMEDY = "pass a teacher with the student's outputs"


def regression_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Outputs of both (batch, ...), of one shape -> scalar. Raises TaskError where the shapes differ.

    An output that is the same for the whole batch, or a batch of one, is compared in its own unit.
    """
    same_shape(student, teacher, _REMEDY)
    teacher = teacher.detach()
    variance = teacher.var(0, unbiased=False, keepdim=True)
    scale = torch.where(variance > 0, variance, 1)
    return ((student - teacher).square() / scale).mean()


def bounded_regression_loss(student: Tensor, teacher: Tensor, target: Tensor, margin: float = 0.0) -> Tensor:
    """Outputs of both and targets (batch, ...), of one shape -> scalar; margin in squared units of the target."""
    same_shape(student, teacher, _REMEDY)
    same_shape(student, target, "give targets the shape of the outputs")
    own = (student - target).square().flatten(1).sum(1)  # (batch,)
    bound = (teacher.detach() - target).square().flatten(1).sum(1)
    return torch.where(own + margin > bound, own, 0).mean()
