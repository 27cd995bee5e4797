"""What each layer ended with, row by row, with the reason where it isn't integers."""

import pytest
import torch
from torch import nn

import paredown
from paredown import Activations, MixedBits, Quantize, Task
from paredown.core.errors import TaskError
from paredown.core.report import LayerBits, LayerCost
from paredown.quantization.bits import layer_bits
from paredown.quantization.model import QuantizedModel
from tests.quantization.models import Recurrent


def rows_of(task: Task, config: Quantize) -> dict[str, LayerBits]:
    model = paredown.quantize(task, config)
    assert isinstance(model, QuantizedModel)
    return {row.module: row for row in layer_bits(model)}


def test_static_layers_have_their_bits_and_no_note(pattern_task: Task) -> None:
    rows = rows_of(pattern_task, Quantize(bits=3, activations=Activations(bits=4)))
    last = rows["block2.conv2"]
    assert (last.operator, last.parameters, last.weight_bits, last.activation_bits) == ("conv2d", 32 * 32 * 9, 3, 4)
    assert rows["stem.0"].weight_bits == rows["stem.0"].activation_bits == 8
    assert not any(row.note for row in rows.values())


def test_what_bits_bought_is_counted(pattern_task: Task) -> None:
    rows = rows_of(pattern_task, Quantize(bits=4, protect=("head",)))
    macs, weights = 32 * 32 * 9 * 4 * 4, 32 * 32 * 9  # of the last convolution, on maps of 4 by 4
    assert rows["block2.conv2"].cost == LayerCost(weights // 2 + 4 * 32, 4 * weights, macs * 4 * 8, macs * 32 * 32)
    head = rows["head"].cost
    assert head is not None and head.size_bytes == head.size_bytes_float and head.bops == head.bops_float
    half = rows_of(pattern_task, Quantize(kind="fp16"))["block2.conv2"].cost
    assert half is not None and half.size_bytes == 2 * weights


def test_mixed_bits_are_told_layer_by_layer(pattern_task: Task) -> None:
    rows = rows_of(pattern_task, Quantize(bits=MixedBits(3, evaluations=1)))
    assert len({row.weight_bits for row in rows.values()}) > 1
    for row in rows.values():
        assert row.sensitivity is not None and row.sensitivity.measure == "noise" and row.sensitivity.activations == ()
        losses = {each.bits: each.loss for each in row.sensitivity.weights}
        assert list(losses) == [2, 3, 4, 8] and losses[2] > losses[8] >= 0


def test_protected_layers_and_dynamic_convolutions_are_float_with_a_reason(pattern_task: Task) -> None:
    head = rows_of(pattern_task, Quantize(protect=("head",)))["head"]
    assert head.weight_bits == 32 and "protected" in head.note
    stem = rows_of(pattern_task, Quantize(kind="dynamic"))["stem.0"]
    assert stem.weight_bits == 32 and "static" in stem.note


def test_recurrent_layers_say_why_they_compute_in_float() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (8, 7))
    batches = [(tokens, torch.zeros(8, dtype=torch.int64))]
    task = Task(Recurrent().eval(), (tokens,), batches, batches)
    rows = rows_of(task, Quantize(kind="dynamic"))
    assert (rows["lstm"].weight_bits, rows["lstm"].activation_bits) == (8, 32)
    assert "recurrent operators take floats only" in rows["lstm"].note
    assert rows["lstm"].parameters == sum(p.numel() for p in nn.LSTM(8, 12, 2, bidirectional=True).parameters() if p.dim() == 2)
    assert (rows["head"].weight_bits, rows["head"].activation_bits, rows["head"].note) == (8, 8, "")


def test_a_float_model_has_no_bits() -> None:
    with pytest.raises(TaskError, match=r"quantized one, got Linear; call paredown\.quantize first"):
        layer_bits(nn.Linear(2, 2))  # type: ignore[arg-type]  # on purpose
