"""Similarity-preserving distillation (Tung, Mori, arXiv:1907.09682, section 3).

    G = rows of Q Q^T, each of length 1,   L = |G_t - G_s|^2 / batch^2,   Q (batch, features)

Pairs of samples that are alike for the teacher shall be so for the student; widths and resolutions may differ.
"""

import torch.nn.functional as F
from torch import Tensor

from paredown.distillation.losses.shapes import relations_between


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Features of both (batch, ...) -> scalar. Raises TaskError for batches of one, or that differ."""
    s, t = (F.normalize(q @ q.T, dim=1) for q in relations_between(student, teacher, 2))
    return (t - s).square().mean()
