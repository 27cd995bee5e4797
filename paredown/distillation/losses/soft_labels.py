"""Soft labels (Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2).

    L = T^2 KL(softmax(teacher / T) || softmax(student / T))

T^2 keeps the gradient's size the same whatever the temperature (section 2.1). Classes lie on dimension 1, as in torch's
cross entropy: (batch, classes), (batch, classes, height, width); of three dimensions on the last, as sequence models give
them: (batch, sequence, classes). `outputs.py` turns (batch, classes, length) round where the target tells. The sum goes over
the classes, the mean over everything else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.distillation.losses.shapes import class_axis


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Logits of both, of one shape -> scalar. Gradients flow to the student alone.

    Raises TaskError where the shapes differ, or where there are fewer than 2 classes (the loss would be 0 whatever the student).
    """
    axis = class_axis(student, teacher)
    soft_teacher = F.log_softmax(teacher.detach() / temperature, axis)
    soft_student = F.log_softmax(student / temperature, axis)
    divergence = (soft_teacher.exp() * (soft_teacher - soft_student)).sum(axis)
    return temperature**2 * divergence.mean()


def blend(soft: Tensor, hard: Tensor, hard_weight: float) -> Tensor:
    """The two losses by their weights, which sum to 1."""
    return torch.lerp(soft, hard.to(soft.dtype), hard_weight)
