"""Contrastive distillation, after CRD (Tian et al., arXiv:1910.10699), with the other samples of the batch as negatives.

    L = -mean over i of log softmax_j(cos(student_i, teacher_j) / T) at j = i

CRD estimates the same bound on mutual information with thousands of negatives from a memory of the whole data set; within a
batch (InfoNCE, arXiv:1807.03748) nothing has to be remembered, but small batches are weak. Embeddings must have one width: put
an adapter between them where they don't.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.distillation.losses.shapes import relations_between, same_shape


def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Embeddings of both (batch, ...), of one shape -> scalar. Raises TaskError for batches of one, or shapes that differ."""
    same_shape(student, teacher, "put an adapter between them")
    s, t = (F.normalize(x, dim=1) for x in relations_between(student, teacher, 2))
    return F.cross_entropy(s @ t.T / temperature, torch.arange(len(s), device=s.device))
