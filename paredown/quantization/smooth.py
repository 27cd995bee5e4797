"""SmoothQuant (Xiao et al., arXiv:2211.10438, eq. 3 and 4): outliers of activations move into the weights behind them.

X W = (X / s)(s W), s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), j (channels,) of the input. 1 / s is folded into the norm (or
the linear layer) that makes X, so that nothing is left to compute.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from paredown.core.fields import within
from paredown.quantization.layers import input_node, unquantized, values_at
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scaling import Scaling, input_magnitudes, rescale_, scalings_of
from paredown.task.batches import Inputs

_SMALLEST = 1e-5


def smoothing_scales(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """activations, weights (channels,): largest magnitudes -> s (channels,) above 0; 1 where a channel is silent."""
    s = activations.double().clamp(min=_SMALLEST) ** alpha / weights.double().clamp(min=_SMALLEST) ** (1 - alpha)
    return torch.where((activations > 0) & (weights > 0), s, 1.0).clamp(_SMALLEST, 1 / _SMALLEST)


def smooth_(model: QuantizedModel, batches: Sequence[Inputs], *, alpha: float = 0.5) -> int:
    """Smooths the input of every linear layer behind a norm; returns how many tensors. Calibrate afterwards.

    alpha: how much of the difficulty moves into the weights, in [0, 1]. The float model's function stays, to rounding.
    """
    within("alpha", alpha, 0, 1)
    scalings = [scaling for scaling in scalings_of(model) if scaling.from_norm]
    for scaling in scalings:
        rescale_(model, scaling, smoothing_scales(_largest(model, scaling, batches), _weights(model, scaling), alpha))
    return len(scalings)


def _largest(model: QuantizedModel, scaling: Scaling, batches: Sequence[Inputs]) -> Tensor:
    """(channels,): the largest magnitude of each channel of the tensor over the batches, in the float model."""
    node, found = input_node(scaling.readers[0]), torch.zeros(scaling.channels)
    with unquantized(model):
        for inputs in batches:
            (x,) = values_at(model, [node], inputs)  # (..., channels)
            found = torch.maximum(found.to(x), x.abs().reshape(-1, scaling.channels).amax(0))
    return found


def _weights(model: QuantizedModel, scaling: Scaling) -> Tensor:
    return torch.stack([input_magnitudes(layer.weight(model)) for layer in scaling.readers]).amax(0)
