"""Value relations (Wang et al., MiniLM, arXiv:2002.10957, section 3.2; of queries and keys as well: MiniLMv2, arXiv:2012.15828).

    R = softmax(v v^T / sqrt(width)),   L = mean over samples, heads and tokens of KL(R_t || R_s)

v (batch, heads, sequence, width of a head). Only sequences have to agree: widths may differ, and where the number of heads
does, both are cut anew into `heads` of their whole width.
"""

import math

import torch
from torch import Tensor

from paredown.core.errors import TaskError
from paredown.distillation.losses.attention_maps import mean_divergence


def value_relation_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, heads: int | None = None) -> Tensor:
    """Values (or queries, or keys) of both -> scalar. mask (batch, sequence): true for tokens, false for padding.

    heads: relation heads; None: those that both have. Raises TaskError where batch, sequence or heads don't fit.
    """
    if heads is not None:
        student, teacher = _recut(student, heads), _recut(teacher, heads)
    if student.dim() != 4 or student.shape[:3] != teacher.shape[:3]:
        raise TaskError(
            "teacher and student must give values (batch, heads, sequence, width) that differ in width only",
            got=f"{tuple(teacher.shape)} and {tuple(student.shape)}",
            remedy="pass heads=, a number that divides both widths",
        )
    return mean_divergence(relation(student, mask), relation(teacher.detach(), mask), mask)


def relation(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(batch, heads, sequence, width) -> log-probabilities (batch, heads, sequence, sequence); -inf towards padding."""
    scores = values @ values.transpose(-1, -2) / math.sqrt(values.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask.bool()[:, None, None, :], -torch.inf)
    return scores.log_softmax(-1)


def _recut(values: Tensor, heads: int) -> Tensor:
    """The same values in another number of heads."""
    together = values.transpose(1, 2).flatten(2)  # (batch, sequence, heads * width)
    if together.shape[2] % heads:
        raise TaskError(
            "heads must divide the width of all heads together",
            got=f"{heads} and {together.shape[2]}",
            remedy="take a common divisor of both widths",
        )
    return together.reshape(*together.shape[:2], heads, -1).transpose(1, 2)
