"""Linear centred kernel alignment (Kornblith et al., arXiv:1905.00414, section 3): how alike two layers see a batch.

    cka = <HKH, HLH> / (|HKH| |HLH|),   K = X X^T, L = Y Y^T, H = 1 - 1/batch

X, Y (batch, features), of any widths. 1: equal up to rotation and scale of the features; 0: no relation.
"""

import torch
from torch import Tensor


def centred_gram(features: Tensor) -> Tensor:
    """(batch, ...) -> (batch, batch): HKH, in float64."""
    flat = features.detach().flatten(1).double()
    flat = flat - flat.mean(0)
    return flat @ flat.T


def alignment(one: Tensor, other: Tensor) -> float:
    """Of two centred grams, in [0, 1]; 0 where the features of one are the same for every sample."""
    norms = float(one.norm() * other.norm())
    return float(torch.sum(one * other)) / norms if norms > 0 else 0.0
