"""Sensitivity of single weights: the first-order change of the output when one of them becomes zero.

    score_ij = sqrt(mean over batches of (weight_ij gradient_ij)^2), as a multiple of its mean over all weights

The gradient is that of the output along a random direction, so no label is read, or of the user's own training step where the
task has one: see `pruning/scores.py` for why.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def sensitivity(weights: Sequence[Tensor], gradients: Iterable[Sequence[Tensor | None]]) -> list[Tensor]:
    """One score tensor a weight, of its shape. gradients: for each batch one a weight, None where nothing depends on it."""
    total = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for each in gradients:
        for score, weight, gradient in zip(total, weights, each, strict=True):
            if gradient is not None:
                score.add_((weight * gradient).float().square())
    roots = [score.sqrt() for score in total]
    mean = sum(float(root.double().sum()) for root in roots) / max(1, sum(root.numel() for root in roots))
    return [root / max(mean, 1e-30) for root in roots]
