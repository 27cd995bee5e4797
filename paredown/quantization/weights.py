"""Scales of a weight: from the extremes of each row or group, or those with the smallest squared error on the grid.

weight (rows, ...): one row per output channel. Scales and zero points: (rows,), or (rows, blocks) where `block` > 0.
"""

import torch
from torch import Tensor

from paredown.quantization.grid import Grid, block_range, channel_range, in_blocks, per_entry, scale_and_zero_point

_FRACTIONS = 60


def extreme_scales(weight: Tensor, grid: Grid, block: int = 0) -> tuple[Tensor, Tensor]:
    """No value is clipped."""
    return scale_and_zero_point(*(block_range(weight, block) if block else channel_range(weight)), grid)


def fitted_scales(weight: Tensor, grid: Grid, block: int = 0) -> tuple[Tensor, Tensor]:
    """Of 60 fractions of its range, each row (group) takes the one with the smallest squared error; ties: the larger."""
    rows = in_blocks(weight.detach(), block) if block else weight.detach().reshape(weight.shape[0], -1)  # (..., n)
    low, high = (block_range if block else _whole_range)(weight, block)
    best = torch.full(low.shape, torch.inf, dtype=torch.float64, device=weight.device)
    scale, zero_point = scale_and_zero_point(low, high, grid)
    for fraction in torch.linspace(1, 0.2, _FRACTIONS, dtype=torch.float64).tolist():
        s, z = scale_and_zero_point(low * fraction, high * fraction, grid)
        step, shift = s.unsqueeze(-1), z.unsqueeze(-1)
        q = (torch.round(rows / step) + shift).clamp(grid.low, grid.high)
        error = (((q - shift) * step - rows) ** 2).sum(-1, dtype=torch.float64)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero_point = torch.where(better, s, scale), torch.where(better, z, zero_point)
    return scale, zero_point


def rounded(weight: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, block: int = 0) -> Tensor:
    """The nearest values on the grid, in weight's shape and type."""
    return dequantized(integers(weight, scale, zero_point, grid, block), scale, zero_point, block).to(weight.dtype)


def integers(weight: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, block: int = 0) -> Tensor:
    """int32 on the grid, in weight's shape: what is stored."""
    s, z = (per_entry(t, weight, block).reshape(weight.shape) for t in (scale, zero_point))
    return (torch.round(weight.detach() / s.to(weight.dtype)) + z).clamp(grid.low, grid.high).int()


def dequantized(q: Tensor, scale: Tensor, zero_point: Tensor, block: int = 0) -> Tensor:
    """What the stored integers stand for, float32, in q's shape."""
    s, z = (per_entry(t, q, block).reshape(q.shape) for t in (scale, zero_point))
    return (q - z).to(s.dtype) * s


def _whole_range(weight: Tensor, _block: int) -> tuple[Tensor, Tensor]:
    return channel_range(weight)
