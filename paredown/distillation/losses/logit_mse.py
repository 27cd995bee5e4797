"""Logits matched directly (Ba, Caruana, arXiv:1312.6184, eq. 1; against soft labels: Kim et al., arXiv:2105.08919).

    L = 1/2 mean over samples and classes of (student - teacher)^2

The limit of soft labels at a high temperature for logits of zero mean, up to the factor of the number of classes.
"""

import torch.nn.functional as F
from torch import Tensor

from paredown.distillation.losses.shapes import same_shape


def logit_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Logits of both, of one shape -> scalar. Raises TaskError where the shapes differ."""
    same_shape(student, teacher, "pass a teacher with the student's classes")
    return F.mse_loss(student, teacher.detach()) / 2
