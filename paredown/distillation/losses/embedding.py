"""Embeddings of encoders: their direction is what is compared when they are used (Sanh et al., DistilBERT, arXiv:1910.01108,
section 3, for hidden states).

L = mean over samples of 1 - cos(student, teacher)
"""

import torch.nn.functional as F
from torch import Tensor

from paredown.distillation.losses.shapes import same_shape


def embedding_loss(student: Tensor, teacher: Tensor, *, axis: int = -1) -> Tensor:
    """Embeddings of both, of one shape, their width on `axis` -> scalar in [0, 2]. Raises TaskError where the shapes differ."""
    same_shape(student, teacher, "put an adapter between them, or compare relations of samples, which need no equal widths")
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=axis)).mean()
