"""Bias correction (Nagel et al., arXiv:1906.04721, section 4.2; the empirical form of its appendix D).

Rounding shifts the mean of a layer's output: E[y_q] - E[y] per output channel, (channels,). That shift is taken off the bias,
layer after layer, each seeing what the corrected ones before it give. Right means don't have to make a right output: of a
ResNet-20 the output came out further from the float one's, at 8 bits and at 4. So a correction is kept only where the output
comes nearer on samples that it wasn't computed from.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from paredown.quantization.layers import CONVOLUTIONS, Layer, layers_of, node_named, unquantized, values_at
from paredown.quantization.model import QuantizedModel
from paredown.quantization.nodes import name_of
from paredown.task.batches import Inputs, call, tensors


def channel_means(y: Tensor, axis: int) -> Tensor:
    """y: any shape -> (channels,) float64, the mean over all but `axis`."""
    return y.double().movedim(axis, 0).flatten(1).mean(1)


@torch.no_grad()
def correct_biases_(
    model: QuantizedModel, batches: Sequence[Inputs], *, reference: QuantizedModel | None = None
) -> dict[str, Tensor]:
    """Corrects every layer that has a bias; returns what was added, (channels,) by layer key.

    batches: inputs, of about equal size. reference: a copy from before the weights were changed (None: the model itself, its
    quantizers off). The model is calibrated; where a bias is on a grid its scale stays.
    """
    layers = [layer for layer in layers_of(model) if layer.bias_path is not None]
    source = copy.deepcopy(model) if reference is None else reference
    with unquantized(source):
        expected = _means(source, [node_named(source, layer.node.name) for layer in layers], batches)
    added = {}
    for layer, wanted in zip(layers, expected, strict=True):
        (found,) = _means(model, [layer.node], batches)
        added[layer.key] = _add_(model, layer, wanted - found)
    return added


def correct_where_nearer_(
    model: QuantizedModel, batches: Sequence[Inputs], *, reference: QuantizedModel | None = None
) -> dict[str, Tensor] | None:
    """As `correct_biases_` by all batches but the last, where there are more; undone, and None, where the model's output is no
    nearer to the float one's on the last.
    """
    learned, judge = (batches[:-1], batches[-1]) if len(batches) > 1 else (batches, batches[0])
    source = copy.deepcopy(model) if reference is None else reference
    with unquantized(source):
        expected = _outputs(source, judge)
    biases = [bias for layer in layers_of(model) if (bias := layer.bias(model)) is not None]
    before, error = [bias.clone() for bias in biases], _error(model, judge, expected)
    added = correct_biases_(model, learned, reference=source)
    if not added or not expected or _error(model, judge, expected) < error:
        return added
    with torch.no_grad():
        for bias, value in zip(biases, before, strict=True):
            bias.copy_(value)
    return None


@torch.no_grad()
def _outputs(model: QuantizedModel, inputs: Inputs) -> list[Tensor]:
    return [output.double() for output in tensors(call(model, inputs)) if output.is_floating_point()]


def _error(model: QuantizedModel, inputs: Inputs, expected: Sequence[Tensor]) -> float:
    """The sum of squares of what the outputs are off by."""
    return sum(float((y - x).square().sum()) for y, x in zip(_outputs(model, inputs), expected, strict=True))


def _add_(model: QuantizedModel, layer: Layer, shift: Tensor) -> Tensor:
    bias = layer.bias(model)
    assert bias is not None  # only layers that have one
    bias.add_(shift.to(bias.dtype))
    return shift


def _means(model: QuantizedModel, nodes: Sequence[fx.Node], batches: Sequence[Inputs]) -> list[Tensor]:
    """(channels,) of each node, the mean over the batches."""
    sums: list[Tensor] = []
    for inputs in batches:
        axes = [1 if name_of(node) in CONVOLUTIONS else -1 for node in nodes]
        found = [channel_means(y, axis) for y, axis in zip(values_at(model, nodes, inputs), axes, strict=True)]
        sums = found if not sums else [a + b for a, b in zip(sums, found, strict=True)]
    return [total / len(batches) for total in sums]
