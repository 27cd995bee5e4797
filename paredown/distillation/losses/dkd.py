"""Decoupled knowledge distillation (Zhao et al., arXiv:2203.08679, section 3).

    L = T^2 (alpha KL(b_teacher || b_student) + beta KL(q_teacher || q_student))

b: the pair (probability of the target class, of all others); q: the softmax over the other classes alone. In plain soft labels
the second term is weighted by the teacher's doubt, 1 - b, and vanishes where the teacher is sure; here it isn't.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.core.errors import TaskError
from paredown.distillation.losses.shapes import class_axis


def dkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Logits of both (batch, classes), target (batch,) of class numbers -> scalar.

    Raises TaskError where the shapes differ, there are fewer than 3 classes, or the target isn't of class numbers.
    """
    _check(student, teacher, target)
    known = F.one_hot(target.long(), student.shape[1]).bool()
    log_p, log_q = (_parts(logits / temperature, known) for logits in (student, teacher.detach()))
    divergences = [_divergence(teacher_part, student_part) for student_part, teacher_part in zip(log_p, log_q, strict=True)]
    return temperature**2 * (alpha * divergences[0] + beta * divergences[1])


def _parts(logits: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target and rest (batch, 2), and of the other classes among themselves (batch, classes - 1)."""
    target, others = logits[known][:, None], logits[~known].view(len(logits), -1)
    rest = others.logsumexp(1, keepdim=True)
    return torch.cat([target, rest], 1).log_softmax(1), others - rest


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    return (teacher.exp() * (teacher - student)).sum(1).mean()


def _check(student: Tensor, teacher: Tensor, target: Tensor) -> None:
    class_axis(student, teacher)
    if student.dim() != 2 or student.shape[1] < 3:
        raise TaskError(
            "decoupled distillation needs logits (batch, classes) of at least 3 classes",
            got=tuple(student.shape),
            remedy="use soft labels instead",
        )
    numbers = target.shape == student.shape[:1] and not target.is_floating_point()
    if not numbers or not bool(((target >= 0) & (target < student.shape[1])).all()):
        raise TaskError(
            f"decoupled distillation needs one class number a sample, from 0 to {student.shape[1] - 1}",
            got=f"{target.tolist()[:8]}" if numbers else f"a target of {target.dtype} {tuple(target.shape)}",
            remedy="use soft labels, which need no target",
        )
