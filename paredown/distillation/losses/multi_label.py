"""Soft labels where any number of classes may be true (Yang et al., arXiv:2308.06453, section 3: one binary divergence a class).

    L = T^2 mean over samples of sum over classes KL(Bernoulli(sigmoid(teacher / T)) || Bernoulli(sigmoid(student / T)))

Also the soft labels of a binary classifier with one logit, (batch,) or (batch, 1). Classes lie where `soft_labels.py` has them.
"""

import torch.nn.functional as F
from torch import Tensor

from paredown.distillation.losses.shapes import same_shape


def multi_label_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits of both, of one shape, each its own sigmoid -> scalar. Raises TaskError where the shapes differ."""
    same_shape(student, teacher, "pass a teacher with the student's classes")
    s, t = student / temperature, teacher.detach() / temperature
    p = t.sigmoid()
    divergence = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    if divergence.dim() > 1:  # else one logit a sample
        divergence = divergence.sum(2 if divergence.dim() == 3 else 1)
    return temperature**2 * divergence.mean()
