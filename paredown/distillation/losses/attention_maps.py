"""Attention maps of transformers, head by head.

Scores (Jiao et al., TinyBERT, arXiv:1909.10351, eq. 7), before the softmax:

    L = mean over heads of the mean square of A_s - A_t

Distributions (Wang et al., MiniLM, arXiv:2002.10957, section 3.1), after it:

    L = mean over samples, heads and queries of KL(a_t || a_s)

Both have the shape (batch, heads, queries, keys). mask (batch, sequence) is true for tokens, false for padding: it leaves out
queries and keys.
"""

import torch
from torch import Tensor

from paredown.core.errors import TaskError
from paredown.distillation.losses.shapes import same_shape

_REMEDY = "compare layers with as many heads on the same inputs; value relations need no equal width"


def attention_score_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scores of both, before the softmax, of one shape -> scalar. Raises TaskError where the shapes differ."""
    same_shape(student, teacher, _REMEDY)
    squares = (student - teacher.detach()).square()
    if mask is None:
        return squares.mean()
    kept = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(squares)
    return squares.masked_fill(~kept, 0).sum() / kept.sum().clamp_min(1)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-probabilities of both, after the (log-)softmax over the keys, of one shape -> scalar; -inf where a key is masked.

    Raises TaskError where the shapes differ.
    """
    same_shape(student, teacher, _REMEDY)
    return mean_divergence(student, teacher.detach(), mask)


def mean_divergence(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """KL(teacher || student) of log-probabilities (batch, heads, queries, keys), mean over all queries that are no padding."""
    if mask is not None and mask.shape != (teacher.shape[0], teacher.shape[2]):
        raise TaskError(
            "a mask of tokens must be (batch, sequence)", got=tuple(mask.shape), remedy="pass the tokenizer's attention mask"
        )
    present = teacher > -torch.inf
    difference = torch.where(present, teacher, 0) - torch.where(present, student, 0)
    each = (teacher.exp() * difference).sum(-1)  # (batch, heads, queries)
    if mask is None:
        return each.mean()
    kept = mask.bool()[:, None, :].expand_as(each)
    return each.masked_fill(~kept, 0).sum() / kept.sum().clamp_min(1)
