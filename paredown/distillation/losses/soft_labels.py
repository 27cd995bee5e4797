"""Soft labels (Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2).

    L = T^2 KL(softmax(teacher / T) || softmax(student / T))

T^2 keeps the gradient's size the same whatever the temperature (section 2.1). Classes lie on dimension 1, as in torch's
cross entropy: (batch, classes), (batch, classes, height, width); of three dimensions on the last, as sequence models give
them: (batch, sequence, classes). The sum goes over the classes, the mean over everything else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.core.errors import TaskError


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Logits of both, of one shape -> scalar. Gradients flow to the student alone.

    Raises TaskError where the shapes differ, or where there are fewer than 2 classes (the loss would be 0 whatever the student).
    """
    axis = _class_axis(student, teacher)
    soft_teacher = F.log_softmax(teacher.detach() / temperature, axis)
    soft_student = F.log_softmax(student / temperature, axis)
    divergence = (soft_teacher.exp() * (soft_teacher - soft_student)).sum(axis)
    return temperature**2 * divergence.mean()


def blend(soft: Tensor, hard: Tensor, hard_weight: float) -> Tensor:
    """The two losses by their weights, which sum to 1."""
    return torch.lerp(soft, hard.to(soft.dtype), hard_weight)


def _class_axis(student: Tensor, teacher: Tensor) -> int:
    if student.shape != teacher.shape:
        raise TaskError(
            "teacher and student must give outputs of one shape",
            got=f"{tuple(teacher.shape)} and {tuple(student.shape)}",
            remedy="pass a teacher with the student's classes",
        )
    axis = 2 if student.dim() == 3 else 1
    if student.dim() < 2 or student.shape[axis] < 2:
        raise TaskError(
            "soft labels need logits of at least 2 classes", got=tuple(student.shape),
            remedy="set hard_weight=1 to train by the task's own loss alone (regression has no soft labels)",
        )  # fmt: skip
    return axis
