"""Which weights go, from one score a weight: the lowest. A mask is true where a weight is switched off.

Equal scores: the one with the higher index goes first, so that a choice doesn't depend on the sort.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def lowest(scores: Tensor, count: int) -> Tensor:
    """A mask of the shape of `scores` with exactly `count` set: the lowest scores."""
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[scores.numel() - count :]] = True
    return mask.view(scores.shape)


def lowest_of_all(scores: Sequence[Tensor], ratio: float) -> list[Tensor]:
    """One mask a score tensor; together `ratio` of all weights, rounded."""
    flat = torch.cat([each.flatten() for each in scores])
    parts = torch.split(lowest(flat, round(ratio * flat.numel())), [each.numel() for each in scores])
    return [part.view(each.shape) for part, each in zip(parts, scores, strict=True)]


def lowest_of_rows(scores: Tensor, ratio: float) -> Tensor:
    """scores (..., columns): the same fraction of each row, rounded so that the whole has the ratio too (to half a weight)."""
    rows = scores.reshape(-1, scores.shape[-1])
    columns = rows.shape[1]
    ends = [round(ratio * columns * row) for row in range(rows.shape[0] + 1)]
    counts = torch.tensor([b - a for a, b in itertools.pairwise(ends)], device=scores.device)
    order = rows.argsort(dim=1, descending=True, stable=True)
    gone = torch.arange(columns, device=scores.device) >= columns - counts[:, None]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, gone).view(scores.shape)
