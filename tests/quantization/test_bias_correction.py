"""Bias correction: on average every channel gives what it gave in float."""

import copy

import torch
from torch import Tensor

import paredown
from paredown.quantization.bias_correction import channel_means, correct_biases_, correct_where_nearer_
from paredown.quantization.layers import layers_of, unquantized, values_at
from paredown.quantization.model import QuantizedModel
from paredown.task.task import Task


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


def test_a_correction_is_kept_where_the_output_comes_nearer_and_undone_where_not(
    published_w4: QuantizedModel, calibration: list[Tensor]
) -> None:
    """Of ResNet-20 in 4 bits all means are right afterwards; whether they stay is for the output to decide."""
    model, judge = copy.deepcopy(published_w4), calibration[-1]
    with torch.no_grad(), unquantized(model):
        wanted = model(judge)
    corrected = copy.deepcopy(model)
    correct_biases_(corrected, calibration[:-1])
    errors = [float((m(judge) - wanted).detach().square().sum()) for m in (model, corrected)]
    kept = correct_where_nearer_(model, calibration)
    before, after = published_w4.state_dict(), model.state_dict()
    assert (kept is None) == (errors[1] >= errors[0])
    assert all(torch.equal(before[name], after[name]) for name in before) == (kept is None)


def test_a_correction_that_helps_is_kept(pattern_task: Task) -> None:
    quantized = paredown.quantize(pattern_task, paredown.Quantize(samples=64, bits=3))
    batches = [x for x, _ in pattern_task.train][:4]
    with torch.no_grad():
        layers_of(quantized)[-1].bias(quantized).add_(3.0)  # type: ignore[union-attr]  # it has one
    reference = paredown.quantize(pattern_task, paredown.Quantize(samples=64, bits=3))
    assert correct_where_nearer_(quantized, batches, reference=reference)


def test_channel_means_average_everything_but_the_channel() -> None:
    y = torch.arange(24.0).view(2, 3, 4)
    assert channel_means(y, 1).tolist() == [7.5, 11.5, 15.5]
    assert channel_means(y, -1).tolist() == [10, 11, 12, 13]
