"""Sensitivity of single weights: how far the output moves, or the loss, to first order, when one of them becomes zero.

    score_ij = |weight_ij| sqrt(mean over batches of gradient_ij^2), as a multiple of its mean over all weights

The gradient is that of the output along a random direction, so no label is read ("sensitivity"), or of the loss
("sensitivity_loss"); of the user's own training step where the task has one: see `importance/gradients.py`.
"""

from collections.abc import Sequence

from torch import Tensor


def sensitivity(weights: Sequence[Tensor], squares: Sequence[Tensor | None]) -> list[Tensor]:
    """One score tensor a weight, of its shape. squares: of the gradients, their means; None where nothing depends on a weight."""
    scores = [
        weight.abs() * (0 if square is None else square.to(weight).sqrt())
        for weight, square in zip(weights, squares, strict=True)
    ]
    mean = sum(float(score.double().sum()) for score in scores) / max(1, sum(score.numel() for score in scores))
    return [score / max(mean, 1e-30) for score in scores]
