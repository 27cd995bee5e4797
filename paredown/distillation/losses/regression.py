"""Outputs that are numbers, not logits: as near to the teacher as the teacher's own spread makes matter; or bounded by it.

    L = mean((student - teacher)^2) / variance of the teacher's outputs

The variance is over samples, for each output of its own, so that outputs in unlike units weigh the same. One that hardly varies,
by less than a thousandth of what the most varying one does, is compared as if it varied by that: it would outweigh all others.
One that doesn't vary at all is compared in its own unit.

Bounded (Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS 2017, section 3.3): a
regression teacher may be wrong without bound, so the student is only pulled to the target while it is not better by a margin.

    L = mean of |student - target|^2 where |student - target|^2 + margin > |teacher - target|^2, else 0
"""

import torch
from torch import Tensor

from paredown.distillation.losses.shapes import same_shape

_REMEDY = "pass a teacher with the student's outputs"


_LEAST = 1e-6  # of the largest variance


def regression_loss(student: Tensor, teacher: Tensor, variance: Tensor | None = None) -> Tensor:
    """Outputs of both (batch, ...), of one shape -> scalar. Raises TaskError where the shapes differ.

    variance: (1, ...), of the teacher's outputs over many samples; None: over this batch.
    """
    same_shape(student, teacher, _REMEDY)
    teacher = teacher.detach()
    spread = teacher.var(0, unbiased=False, keepdim=True) if variance is None else variance
    floored = spread.clamp_min(_LEAST * spread.max()) if spread.numel() else spread
    scale = torch.where(spread > 0, floored, 1)
    return ((student - teacher).square() / scale).mean()


def bounded_regression_loss(student: Tensor, teacher: Tensor, target: Tensor, margin: float = 0.0) -> Tensor:
    """Outputs of both and targets (batch, ...), of one shape -> scalar; margin in squared units of the target."""
    same_shape(student, teacher, _REMEDY)
    same_shape(student, target, "give targets the shape of the outputs")
    own = (student - target).square().flatten(1).sum(1)  # (batch,)
    bound = (teacher.detach() - target).square().flatten(1).sum(1)
    return torch.where(own + margin > bound, own, 0).mean()
