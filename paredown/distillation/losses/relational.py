"""Relational knowledge distillation (Park et al., arXiv:1904.05068, section 3).

    distance: psi_ij = |x_i - x_j| / mean over pairs     angle: psi_ijk = cos of the angle at x_j between x_i and x_k
    L = mean of huber(psi_s - psi_t), quadratic below 1

Over all pairs, or triplets, of different samples. Widths may differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.distillation.losses.shapes import relations_between

_SMALLEST = 1e-12


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Embeddings of both (batch, ...) -> scalar. Raises TaskError for fewer than 2 samples, or batches that differ."""
    s, t = (_distances(x) for x in relations_between(student, teacher, 2))
    return F.huber_loss(s, t)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Embeddings of both (batch, ...) -> scalar. Raises TaskError for fewer than 3 samples, or batches that differ.

    Memory grows with the cube of the batch.
    """
    s, t = relations_between(student, teacher, 3)
    different = _triplets(len(s), s.device)
    return F.huber_loss(_cosines(s)[different], _cosines(t)[different])


def _distances(x: Tensor) -> Tensor:
    """(batch, features) -> (pairs,), with a mean of 1. The root has no gradient at 0: samples that are equal get none."""
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    lengths = (x[i] - x[j]).square().sum(1).clamp_min(_SMALLEST).sqrt()
    return lengths / lengths.mean()


def _cosines(x: Tensor) -> Tensor:
    """(batch, features) -> (j, i, k): of the angle at j between i and k."""
    differences = x[None] - x[:, None]  # (j, i, features)
    lengths = differences.square().sum(2, keepdim=True).clamp_min(_SMALLEST).sqrt()
    directions = differences / lengths
    return directions @ directions.transpose(1, 2)


def _triplets(samples: int, device: torch.device) -> Tensor:
    """(j, i, k), true where all three differ."""
    n = torch.arange(samples, device=device)
    return (n[:, None, None] != n[None, :, None]) & (n[:, None, None] != n) & (n[None, :, None] != n)
