"""Half-quadratic quantization (Badri and Shaji, HQQ, 2023): weights to a grid without data, robust to outliers.

    min over s, z of  || W - D(Q(W)) ||_p^p,  p < 1,  split by an auxiliary error E:
    E <- shrink(W - D, beta)         shrink(x) = sign(x) max(0, |x| - |x|^(p - 1) / beta)      (half-quadratic step)
    z, s <- least squares of (W - E) on the integers q, per row or group;  beta <- kappa beta

The paper moves the zero point alone, as a real number. Runtimes hold it as an integer of the grid, so here it is rounded,
and the scale takes up what that loses. The best pair seen is kept, so that the error never rises above round to nearest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from paredown.quantization.grid import Grid, in_blocks
from paredown.quantization.layers import layers_of
from paredown.quantization.model import QuantizedModel
from paredown.quantization.weights import extreme_scales

_P, _BETA, _KAPPA, _STEPS = 0.7, 10.0, 1.01, 20


def half_quadratic_scales(weight: Tensor, grid: Grid, block: int = 0) -> tuple[Tensor, Tensor]:
    """weight (rows, ...) -> scale float32 and zero point int32, (rows,) or (rows, blocks)."""
    rows = _rows(weight, block)  # (..., n)
    size = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    scale, zero = (t.double().unsqueeze(-1) for t in extreme_scales(weight, grid, block))
    best = lowest = (scale, zero), _distance(rows, scale, zero, grid, size)
    beta = _BETA
    for _ in range(_STEPS):
        (scale, zero), _ = lowest
        q = _integers(rows, scale, zero, grid)
        wanted = rows - size * shrink((rows - (q - zero) * scale) / size, beta)
        zero = zero if grid.symmetric else (q - wanted / scale).mean(-1, keepdim=True).round().clamp(grid.low, grid.high)
        centered = q - zero
        scale = _least_squares(wanted, centered, scale)
        lowest = (scale, zero), _distance(rows, scale, zero, grid, size)
        best = _better(lowest, best)
        beta *= _KAPPA
    (scale, zero), _ = best
    return scale.squeeze(-1).float(), zero.squeeze(-1).int()


def shrink(x: Tensor, beta: float) -> Tensor:
    """The generalized soft threshold of |.|^p."""
    magnitude = x.abs()
    return x.sign() * (magnitude - magnitude.clamp(min=1e-12) ** (_P - 1) / beta).clamp(min=0)


def lp_error(weight: Tensor, approximation: Tensor) -> float:
    """The mean of |w - v|^p: what is minimized."""
    return float(((weight - approximation).abs().double() ** _P).mean())


@torch.no_grad()
def hqq_(model: QuantizedModel, keys: Sequence[str] | None = None) -> tuple[str, ...]:
    """Sets the weight scales of all layers (or those of `keys`), and returns their keys. Needs no data."""
    chosen = [layer for layer in layers_of(model) if keys is None or layer.key in keys]
    for layer in chosen:
        q = layer.quantizer(model)
        q.set_(*half_quadratic_scales(layer.weight(model), q.grid, q.block))
    return tuple(layer.key for layer in chosen)


_Found = tuple[tuple[Tensor, Tensor], Tensor]


def _better(a: _Found, b: _Found) -> _Found:
    """Row by row (group by group) the pair with the smaller error."""
    (scale, zero), error = a
    (other_scale, other_zero), other = b
    wins = error < other
    return (torch.where(wins, scale, other_scale), torch.where(wins, zero, other_zero)), torch.where(wins, error, other)


def _least_squares(wanted: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """The scale with which q is nearest to what is wanted; the old one where that isn't positive."""
    found = (wanted * q).sum(-1, keepdim=True) / (q * q).sum(-1, keepdim=True).clamp(min=1e-30)
    return torch.where(found > 1e-15, found, scale).float().double()


def _integers(rows: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    return (torch.round(rows / scale) + zero).clamp(grid.low, grid.high)


def _distance(rows: Tensor, scale: Tensor, zero: Tensor, grid: Grid, size: Tensor) -> Tensor:
    back = (_integers(rows, scale, zero, grid) - zero) * scale
    return (((rows - back) / size).abs() ** _P).sum(-1, keepdim=True)


def _rows(weight: Tensor, block: int) -> Tensor:
    w = weight.detach().double()
    return in_blocks(w, block) if block else w.reshape(w.shape[0], -1)
