"""Optimal rounding by cumulative column correction (GPTQ, Frantar et al., arXiv:2210.17323, eq. 2 and 3).

weight (out, in), hessian (in, in) = mean of x x^T over the rows x (in,) that the layer reads. Columns are rounded one after
the other; what a column loses is made up for by those that are still to come:
    delta = -(w_i - q_i) / U_ii * U_i,:      U (in, in): upper Cholesky factor of the inverse hessian
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.core.errors import RecipeError
from paredown.quantization.grid import per_entry
from paredown.quantization.layers import Layer, input_node, layers_of, node_named, unquantized, values_at, write_rounded_
from paredown.quantization.model import FakeQuantizer, QuantizedModel
from paredown.quantization.nodes import argument, name_of
from paredown.task.batches import Inputs

_BLOCK = 128  # columns whose effect on the rest is applied at once


def solve(weight: Tensor, hessian: Tensor, round_column: Callable[[Tensor, int], Tensor], *, damping: float = 0.01) -> Tensor:
    """The rounded weight, float64 (out, in), that best keeps `weight @ x`.

    round_column: (column (out,), its index) -> the nearest representable values. damping: fraction of the mean diagonal added.
    Raises RecipeError where the damped hessian is not positive definite.
    """
    upper = inverse_cholesky(hessian, damping)
    dead = torch.diagonal(hessian) == 0  # inputs that never fire: any rounding will do
    remaining, result = weight.detach().double().clone(), torch.empty_like(weight, dtype=torch.float64)
    for start in range(0, weight.shape[1], _BLOCK):
        stop = min(start + _BLOCK, weight.shape[1])
        errors = torch.zeros(weight.shape[0], stop - start, dtype=torch.float64, device=weight.device)
        for i in range(start, stop):
            result[:, i] = round_column(remaining[:, i], i)
            error = torch.zeros_like(errors[:, 0]) if dead[i] else (remaining[:, i] - result[:, i]) / upper[i, i]
            remaining[:, i:stop] -= torch.outer(error, upper[i, i:stop])
            errors[:, i - start] = error
        remaining[:, stop:] -= errors @ upper[start:stop, stop:]
    return result


def inverse_cholesky(hessian: Tensor, damping: float) -> Tensor:
    """(in, in) -> the upper triangular U with U^T U = inverse of the damped hessian, float64."""
    h = hessian.double().clone()
    diagonal = torch.diagonal(h)
    diagonal += damping * diagonal.mean() + (diagonal == 0).double()
    lower, failed = torch.linalg.cholesky_ex(h)
    if int(failed):
        raise RecipeError(
            "the inputs of a layer must give a positive definite hessian",
            got=f"damping {damping}",
            remedy="raise samples, or protect the layer",
        )
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper


@torch.no_grad()
def gptq_(
    model: QuantizedModel,
    batches: Sequence[Inputs],
    *,
    damping: float = 0.01,
    keys: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Rounds layer after layer (all, or those of `keys`), each on what the rounded ones before it give; returns their keys.

    The scales are those that the model has: `calibrate_`, or `set_weight_scales_` where only weights are on grids, comes first.
    Grouped convolutions are rounded to nearest. Afterwards the weights lie on their grids.
    """
    done = []
    for layer in layers_of(model):
        if keys is None or layer.key in keys:
            if layer.groups == 1:
                weight, q = layer.weight(model), layer.quantizer(model)
                matrix = weight.detach().flatten(1)
                solved = solve(matrix, _hessian(model, layer, batches), column_rounding(weight, q), damping=damping)
                weight.copy_(solved.view_as(weight).to(weight.dtype))
            write_rounded_(model, layer, layer.weight(model))
            done.append(layer.key)
    return tuple(done)


def column_rounding(weight: Tensor, q: FakeQuantizer) -> Callable[[Tensor, int], Tensor]:
    """Nearest values on the layer's grid, column by column."""
    scale, zero = (per_entry(t, weight, q.block).double() for t in (q.scale, q.zero_point))

    def round_column(column: Tensor, i: int) -> Tensor:
        s, z = scale[:, i], zero[:, i]
        return ((torch.round(column / s) + z).clamp(q.grid.low, q.grid.high) - z) * s

    return round_column


def rows_of(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """What a layer reads -> (n, in): one row per product with the weight matrix (out, in); for a 2-dimensional convolution of
    one group its unfolded patches.
    """
    if name_of(layer.node) == "linear":
        return x.reshape(-1, x.shape[-1])
    if name_of(layer.node) != "conv2d":
        raise RecipeError(
            "GPTQ takes linear layers and 2-dimensional convolutions", got=layer.key, remedy="protect it, or take another method"
        )
    stride, padding, dilation = (argument(layer.node, i, default) for i, default in ((3, 1), (4, 0), (5, 1)))
    if isinstance(padding, str):
        raise RecipeError(
            "a convolution's padding must be in numbers",
            got=padding,
            remedy="write it as numbers, protect the layer, or take another method",
        )
    patches = F.unfold(x, weight.shape[2:], dilation=dilation, padding=padding, stride=stride)  # (batch, in, places)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _hessian(model: QuantizedModel, layer: Layer, batches: Sequence[Inputs]) -> Tensor:
    """(in, in) float64, the mean of x x^T over what the layer reads; activations are rounded where the model does so."""
    weight = layer.weight(model)
    total, count = torch.zeros(weight[0].numel(), weight[0].numel(), dtype=torch.float64, device=weight.device), 0
    for inputs in batches:
        (x,) = values_at(model, [input_node(layer)], inputs)
        rows = rows_of(layer, x, weight)
        total += (rows.T @ rows).double()
        count += len(rows)
    return total / max(count, 1)


def output_error(model: QuantizedModel, reference: QuantizedModel, batches: Sequence[Inputs], key: str) -> float:
    """Relative squared error of one layer's output against a float reference: what `gptq_` and `adaround_` lower."""
    layer = next(layer for layer in layers_of(model) if layer.key == key)
    error = size = 0.0
    with unquantized(reference):
        wanted = [values_at(reference, [node_named(reference, layer.node.name)], inputs)[0] for inputs in batches]
    for inputs, y in zip(batches, wanted, strict=True):
        (found,) = values_at(model, [layer.node], inputs)
        error, size = error + float((found - y).square().sum()), size + float(y.square().sum())
    return error / size


def reference_of(model: QuantizedModel) -> QuantizedModel:
    """A copy to compare with, from before weights are rounded."""
    return copy.deepcopy(model)
