"""Bias correction: on average every channel gives what it gave in float."""

import copy

import torch
from torch import Tensor

from paredown.quantization.bias_correction import channel_means, correct_biases_
from paredown.quantization.layers import layers_of, unquantized, values_at
from paredown.quantization.model import QuantizedModel


def shifts(model: QuantizedModel, reference: QuantizedModel, batches: list[Tensor]) -> list[float]:
    """For each layer how far the channel means are from the float model's, relative to them."""
    nodes, others = ([layer.node for layer in layers_of(m)] for m in (model, reference))
    found = values_at(model, nodes, torch.cat(batches))
    with unquantized(reference):
        wanted = values_at(reference, others, torch.cat(batches))
    pairs = [(channel_means(a, 1), channel_means(b, 1)) for a, b in zip(found, wanted, strict=True)]
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def test_means_are_those_of_the_float_model_in_every_layer(published_w4: QuantizedModel, calibration: list[Tensor]) -> None:
    model, reference = copy.deepcopy(published_w4), copy.deepcopy(published_w4)
    before = shifts(model, reference, calibration)
    added = correct_biases_(model, calibration, reference=reference)
    after = shifts(model, reference, calibration)
    assert set(added) == {layer.key for layer in layers_of(model)}
    assert max(before) > 0.3 and max(after) < 0.01
    assert all(a < 0.1 * b for a, b in zip(after, before, strict=True))


def test_it_lowers_the_shift_on_images_it_has_not_seen(
    published_w4: QuantizedModel, calibration: list[Tensor], held_out: Tensor
) -> None:
    model, reference = copy.deepcopy(published_w4), copy.deepcopy(published_w4)
    before = shifts(model, reference, [held_out])
    correct_biases_(model, calibration)
    assert sum(shifts(model, reference, [held_out])) < 0.7 * sum(before)


def test_channel_means_average_everything_but_the_channel() -> None:
    y = torch.arange(24.0).view(2, 3, 4)
    assert channel_means(y, 1).tolist() == [7.5, 11.5, 15.5]
    assert channel_means(y, -1).tolist() == [10, 11, 12, 13]
