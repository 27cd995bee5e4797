"""Cross-layer equalization (Nagel et al., "Data-Free Quantization", arXiv:1906.04721, eq. 7 to 11).

Two layers with a relu between: channel i of the first is divided by s_i, the second's input i multiplied by it, with
s_i = sqrt(r1_i / r2_i), r1 (channels,) the largest magnitude of the first's output channel, r2 that of the second's input
channel. Both ranges then are sqrt(r1_i r2_i): no channel's weights vanish under a scale that they share with larger ones.
It matters most with one scale per tensor, per group across channels, or for activations, which have one scale.
"""

import torch
from torch import Tensor

from paredown.quantization.model import QuantizedModel
from paredown.quantization.nodes import get
from paredown.quantization.scaling import Scaling, input_magnitudes, rescale_, scalings_of

_LARGEST = 1e4  # a channel that is as good as dead is not blown up


def equalizing_scales(first: Tensor, second: Tensor) -> Tensor:
    """first, second (channels,): magnitudes, at least 0 -> s (channels,) above 0; 1 where either is 0."""
    s = torch.sqrt(first.double() / second.double())
    s = torch.where((first > 0) & (second > 0) & torch.isfinite(s), s, 1.0)
    return s.clamp(1 / _LARGEST, _LARGEST)


def equalize_(model: QuantizedModel, *, passes: int = 20) -> int:
    """Equalizes every pair of layers until nothing moves; returns how many pairs there are. Calibrate afterwards.

    The function of the float model stays what it was, to rounding. Norms are not among the makers: see `smooth`.
    """
    pairs = [scaling for scaling in scalings_of(model) if not scaling.from_norm]
    for _ in range(passes):
        moved = 0.0
        for pair in pairs:
            s = equalizing_scales(_first(model, pair), _second(model, pair))
            rescale_(model, pair, s)
            moved = max(moved, float(s.log().abs().max()))
        if moved < 1e-3:
            break
    return len(pairs)


def _first(model: QuantizedModel, pair: Scaling) -> Tensor:
    """(channels,): the largest magnitude of each output channel's weights; biases don't count."""
    weight: Tensor = get(model, pair.makers[0]).detach()
    return weight.abs().flatten(1).amax(1)


def _second(model: QuantizedModel, pair: Scaling) -> Tensor:
    """(channels,): the largest magnitude of each input channel's weights, over all readers."""
    return torch.stack([input_magnitudes(layer.weight(model), layer.groups) for layer in pair.readers]).amax(0)
