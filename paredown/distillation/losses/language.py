"""Language models (Kim, Rush, Sequence-Level Knowledge Distillation, arXiv:1606.07947, sections 3.1 and 3.2).

    token level:    L = T^2 mean over tokens of KL(softmax(teacher / T) || softmax(student / T))
    sequence level: L = -mean over tokens of log p_student(token | tokens before it), on text that the teacher has written

Logits (batch, sequence, vocabulary); mask (batch, sequence) is true for tokens that count.
"""

import torch.nn.functional as F
from torch import Tensor

from paredown.core.errors import TaskError
from paredown.distillation.losses.shapes import class_axis


def token_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Logits of both, at the same tokens of any text -> scalar. mask: of the tokens whose prediction counts.

    Raises TaskError where the shapes differ, or the mask doesn't fit.
    """
    class_axis(student, teacher)
    s, t = ((logits / temperature).log_softmax(-1) for logits in (student, teacher.detach()))
    each = (t.exp() * (t - s)).sum(-1)  # (batch, sequence)
    return temperature**2 * _mean(each, mask)


def sequence_loss(student: Tensor, written: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of the student on `written`, tokens (batch, sequence) from the teacher -> scalar, in nats a token.

    mask: of the tokens that were written and are no padding; the first token of a text is never predicted.
    Raises TaskError where the shapes don't fit.
    """
    if student.dim() != 3 or student.shape[:2] != written.shape or written.shape[1] < 2:
        raise TaskError(
            "logits must be (batch, sequence, vocabulary) for tokens (batch, sequence) of at least 2",
            got=f"{tuple(student.shape)} and {tuple(written.shape)}",
            remedy="call the student on what the teacher wrote",
        )
    each = F.cross_entropy(student[:, :-1].transpose(1, 2), written[:, 1:].long(), reduction="none")
    return _mean(each, None if mask is None else mask[:, 1:])


def _mean(each: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return each.mean()
    if mask.shape != each.shape:
        raise TaskError(
            "a mask of tokens must be (batch, sequence)", got=tuple(mask.shape), remedy="pass the tokenizer's attention mask"
        )
    kept = mask.bool()
    return each.masked_fill(~kept, 0).sum() / kept.sum().clamp_min(1)
