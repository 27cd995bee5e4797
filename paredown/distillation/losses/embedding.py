"""Embeddings of encoders: what is compared when they are used is their direction.

    L = mean over samples of 1 - cos(student, teacher)

DistilBERT (Sanh et al., arXiv:1910.01108, section 3) does so with hidden states.
"""

import torch.nn.functional as F
from torch import Tensor

from paredown.distillation.losses.shapes import same_batch, same_shape


def embedding_loss(student: Tensor, teacher: Tensor, *, axis: int = -1) -> Tensor:
    """Embeddings of both, of one shape, their width on `axis` -> scalar in [0, 2].

    Raises TaskError where the shapes differ, or where there is one number a sample, which has no direction.
    """
    same_batch(student, teacher)
    same_shape(student, teacher, "put an adapter between them, or compare relations of samples, which need no equal widths")
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=axis)).mean()
