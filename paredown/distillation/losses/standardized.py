"""Soft labels of standardized logits (Sun et al., Logit Standardization in Knowledge Distillation, arXiv:2403.01427).

    z(v) = (v - mean(v)) / std(v),   L = T^2 KL(softmax(z(teacher) / T) || softmax(z(student) / T))

Mean and standard deviation (divided by the number of classes) are each sample's own over its classes, so a small student need
not reach the size of the teacher's logits, only their shape. Classes lie where `soft_labels.py` has them.
"""

from torch import Tensor

from paredown.distillation.losses.shapes import class_axis
from paredown.distillation.losses.soft_labels import soft_label_loss

_SMALLEST = 1e-7  # added to a standard deviation


def standardized_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Logits of both, of one shape -> scalar. Raises TaskError where the shapes differ, or there are fewer than 2 classes."""
    axis = class_axis(student, teacher)
    return soft_label_loss(standardize(student, axis), standardize(teacher, axis), temperature)


def standardize(logits: Tensor, axis: int) -> Tensor:
    """Zero mean and unit deviation along `axis`; logits that are all equal become 0."""
    centred = logits - logits.mean(axis, keepdim=True)
    variance = centred.square().mean(axis, keepdim=True)
    return centred / (variance.clamp_min(_SMALLEST**2).sqrt() + _SMALLEST)
