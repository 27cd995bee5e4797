"""Bits per layer: within the limit, better than the same bits everywhere, exported packed, kept by checkpoint and recipe."""

import pytest
import torch

import paredown
from paredown import Distill, MixedBits, Quantize, Recipe, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.report import Report
from paredown.quantization.assign import at_width, quantize_mixed
from paredown.quantization.layers import layers_of
from paredown.quantization.model import QuantizedModel
from tests.conftest import SmallResNet
from tests.pipeline.test_low_bits import right

STORED = {2: 2.0, 3: 3.2, 4: 4.0, 8: 8.0}


def average(model: QuantizedModel) -> float:
    layers = layers_of(model)
    counts = [layer.weight(model).numel() for layer in layers]
    bits = [STORED[model.scheme.of(layer.path).weight_bits] for layer in layers]
    return sum(c * b for c, b in zip(counts, bits, strict=True)) / sum(counts)


@pytest.mark.parametrize("sensitivity", ["noise", "metric", "hessian"])
def test_the_average_is_kept_and_layers_differ(pattern_task: Task, sensitivity: str) -> None:
    model = paredown.quantize(pattern_task, Quantize(bits=MixedBits(5, sensitivity=sensitivity, evaluations=3)))  # type: ignore[arg-type]
    assert average(model) <= 5  # which no width is by itself
    assert len({model.scheme.of(layer.path).weight_bits for layer in layers_of(model)}) > 1
    for layer in layers_of(model):
        expected = model.scheme.of(layer.path).weight_bits
        assert layer.quantizer(model).grid.bits == (7 if expected == 8 and model.reduced else expected)


def test_it_beats_the_same_bits_everywhere(pattern_task: Task) -> None:
    uniform = at_width(paredown.quantize(pattern_task, Quantize()), 3)  # 3.2 bits a weight, stored
    mixed = paredown.quantize(pattern_task, Quantize(bits=MixedBits(3.2)))
    assert right(mixed, pattern_task) > right(uniform, pattern_task)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_file_agrees_and_names_its_widths(pattern_task: Task, runtime: str, tmp_path: object) -> None:
    config = Quantize(bits=MixedBits(3, evaluations=1), target=runtime)
    model = paredown.quantize(pattern_task, config)
    artifact = paredown.export(model, pattern_task, target=runtime, path=f"{tmp_path}/m.onnx")
    widths = sorted({model.scheme.of(layer.path).weight_bits for layer in layers_of(model)})
    assert artifact.precision == "/".join(f"int{b}" for b in widths)
    whole = paredown.export(paredown.quantize(pattern_task, Quantize(target=runtime)), pattern_task, path=f"{tmp_path}/8.onnx")
    assert artifact.size_bytes < 0.75 * whole.size_bytes


def test_a_checkpoint_keeps_the_bits(pattern_task: Task, tmp_path: object) -> None:
    model = paredown.quantize(pattern_task, Quantize(bits=MixedBits(3, evaluations=1)))
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), SmallResNet(16))
    assert isinstance(loaded, QuantizedModel) and loaded.scheme == model.scheme
    with torch.no_grad():
        assert torch.equal(loaded(*pattern_task.inputs), model(*pattern_task.inputs))


def test_a_recipe_round_trips() -> None:
    recipe = Recipe((Quantize(bits=MixedBits(4, choices=(8, 2, 4), sensitivity="metric")),))
    assert Recipe.parse(recipe.to_yaml()) == recipe == Recipe.parse(recipe.to_json())
    assert recipe.to_dict()["steps"][0]["bits"] == {"average": 4, "choices": [2, 4, 8], "sensitivity": "metric"}


def test_protected_layers_are_not_among_the_choices(pattern_task: Task) -> None:
    model = paredown.quantize(pattern_task, Quantize(bits=MixedBits(4, evaluations=1), protect=("head",)))
    assert "head" not in model.scheme.layers


def test_other_bits_are_refused(pattern_task: Task) -> None:
    with pytest.raises(RecipeError, match=r"asked for by MixedBits, got 4; write bits=MixedBits\(average=4\)"):
        quantize_mixed(pattern_task.model, pattern_task, Quantize(bits=4), reduced=True)


def test_a_run_trains_mixed_bits_and_reports_them(pattern_task: Task, tmp_path: object) -> None:
    training = Training(effort=Effort(20, "steps"), learning_rate=0.05)
    recipe = Recipe((Quantize(bits=MixedBits(3, evaluations=1), scales="lsq"), Distill(training=training)))
    budget = paredown.Budget(max_drop=0.1, size="0.5x")
    target = paredown.Target("onnxruntime", batch=16, threads=1)
    report = paredown.compress(pattern_task, budget, target=target, out=f"{tmp_path}/run", recipe=recipe)
    assert report.met and len({row.weight_bits for row in report.bits}) > 1
    assert report.best.artifact.precision.startswith("int2/")
    assert Report.from_json(report.to_json()).bits == report.bits
