"""What quantization costs each layer by itself, in decibels of signal to noise, and which part of it: weights or activations.

    SQNR = 10 log10(sum y^2 / sum (y' - y)^2)

y what the layer gives in the float model, y' what it gives there with its weight, its input or both on their grids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.quantization.layers import Layer, input_node, layers_of, unquantized, values_at
from paredown.quantization.model import FakeQuantizer, QuantizedModel
from paredown.quantization.nodes import name_of
from paredown.quantization.placement import key_before
from paredown.task.batches import Inputs


@dataclass(frozen=True)
class LayerNoise:
    """path: of the module. both, weights, activations: dB; infinite where nothing is lost. clipped: fraction of what the layer
    reads that lies beyond the grid.
    """

    path: str
    operator: str
    both: float
    weights: float
    activations: float
    clipped: float


@torch.no_grad()
def layer_noise(model: QuantizedModel, batches: Sequence[Inputs]) -> tuple[LayerNoise, ...]:
    """One for each layer on an integer grid, in the order of the graph. model: calibrated; batches: inputs."""
    return tuple(_of_layer(model, layer, batches) for layer in layers_of(model))


def _of_layer(model: QuantizedModel, layer: Layer, batches: Sequence[Inputs]) -> LayerNoise:
    key = key_before(layer.node)
    grid = model.quantizer(key) if key else None
    weight, bias = layer.weight(model), layer.bias(model)
    rounded = layer.quantizer(model)(weight)
    sums = torch.zeros(6, dtype=torch.float64)  # signal, three noises, clipped, read
    for inputs in batches:
        with unquantized(model):
            (x,) = values_at(model, [input_node(layer)], inputs)
        coarse = x if grid is None else grid(x)
        y = layer.run(x, weight, bias)
        found = [layer.run(a, w, bias) for a, w in ((coarse, rounded), (x, rounded), (coarse, weight))]
        noises = [(value - y).double().square().sum() for value in found]
        sums += torch.stack([y.double().square().sum(), *noises, _beyond(x, grid).double(), torch.tensor(float(x.numel()))]).cpu()
    signal, *parts, clipped, read = sums.tolist()
    both, weights, activations = (10 * math.log10(signal / part) if part > 0 and signal > 0 else math.inf for part in parts)
    return LayerNoise(layer.path, name_of(layer.node), both, weights, activations, clipped / max(read, 1.0))


def _beyond(x: Tensor, quantizer: FakeQuantizer | None) -> Tensor:
    """How many numbers of x are further than half a step beyond the grid, ()."""
    if quantizer is None:
        return torch.zeros((), device=x.device)
    scale = torch.where(x < 0, quantizer.negative, quantizer.scale) if quantizer.grid.two_sided else quantizer.scale
    steps = x / scale + quantizer.zero_point
    return ((steps < quantizer.grid.low - 0.5) | (steps > quantizer.grid.high + 0.5)).sum()
