"""Activation-aware weight quantization (AWQ, Lin et al., arXiv:2306.00978, eq. 4 and 5).

Input channels that carry large activations get finer weights: with s = mean|X|^alpha, (channels,), the weight s W is rounded
and 1 / s folded into what makes X. Of 20 values of alpha in [0, 1) the one with the smallest error of the layers' outputs is
taken: argmin || Q(s W) (X / s) - W X ||^2.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.quantization.layers import Layer, input_node, unquantized, values_at
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scaling import Scaling, rescale_, scalings_of, times_inputs
from paredown.quantization.weights import extreme_scales, rounded
from paredown.task.batches import Inputs

_CANDIDATES = 20
_ROWS = 2048  # of activations that the search looks at

Rounding = Callable[[Tensor], Tensor]


def best_scale(weights: Sequence[Tensor], x: Tensor, rounding: Sequence[Rounding]) -> Tensor:
    """weights: (out, channels) each; x (n, channels); rounding: a weight to its nearest on the grid, for each -> s (channels,).

    s is 1 where no alpha above 0 lowers the error.
    """
    magnitude = x.abs().mean(0).double().clamp(min=1e-8)
    best, found = torch.inf, torch.ones_like(magnitude)
    for step in range(_CANDIDATES):
        s = magnitude ** (step / _CANDIDATES)
        s = s / torch.sqrt(s.max() * s.min())
        errors = [_error(w, x, s, round_) for w, round_ in zip(weights, rounding, strict=True)]
        if sum(errors) < best:
            best, found = sum(errors), s
    return found


@torch.no_grad()
def awq_(model: QuantizedModel, batches: Sequence[Inputs]) -> int:
    """Scales the input of the linear layers wherever a scale can be folded; returns how many tensors.

    Weight scales are stale afterwards: `set_weight_scales_`, or calibrate. The float model's function stays, to rounding.
    """
    scalings = [scaling for scaling in scalings_of(model) if _is_linear(model, scaling)]
    for scaling in scalings:
        x = _rows(model, scaling, batches)
        weights = [layer.weight(model).detach() for layer in scaling.readers]
        rescale_(model, scaling, best_scale(weights, x, [_rounding(model, layer) for layer in scaling.readers]))
    return len(scalings)


def _error(weight: Tensor, x: Tensor, s: Tensor, round_: Rounding) -> float:
    scaled = round_(times_inputs(weight, s))
    return float(((x @ (times_inputs(scaled, 1 / s) - weight).T) ** 2).mean())


def _rounding(model: QuantizedModel, layer: Layer) -> Rounding:
    q = layer.quantizer(model)
    return lambda w: rounded(w, *extreme_scales(w, q.grid, q.block), q.grid, q.block)


def _is_linear(model: QuantizedModel, scaling: Scaling) -> bool:
    return all(layer.weight(model).dim() == 2 for layer in scaling.readers) and not scaling.between - {"dropout"}


def _rows(model: QuantizedModel, scaling: Scaling, batches: Sequence[Inputs]) -> Tensor:
    """(n, channels): what the layers read in the float model, at most _ROWS rows, evenly from all of it."""
    node = input_node(scaling.readers[0])
    with unquantized(model):
        rows = torch.cat([values_at(model, [node], inputs)[0].reshape(-1, scaling.channels) for inputs in batches])
    return F.interpolate(rows.T[None], size=min(_ROWS, len(rows)), mode="nearest")[0].T
