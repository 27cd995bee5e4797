"""Bits per layer: within the limit, better than the same bits everywhere, exported packed, kept by checkpoint and recipe."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Activations, Distill, MixedBits, Quantize, Recipe, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.precision import LayerSensitivity
from paredown.core.report import Report
from paredown.deploy.capabilities import executed_operators
from paredown.measure.latency_table import LatencyTable
from paredown.measure.quality import score
from paredown.pipeline import steps, timings
from paredown.pipeline.timings import layer_latencies
from paredown.quantization.assign import at_width, quantize_mixed
from paredown.quantization.bits import layer_bits
from paredown.quantization.costs import bops_table, facts_of
from paredown.quantization.layers import layers_of
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import BitWidths, Scheme
from paredown.quantization.sensitivity import noise
from paredown.quantization.static import quantize_model
from paredown.task.batches import call, first_samples
from tests.conftest import SmallResNet
from tests.quantization.models import relative


class Labels(nn.Sequential):
    """Numbers of classes, which no gradient gets through."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1, keepdim=True).float()


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


def test_of_noise_and_hessian_what_loses_less_is_taken(pattern_task: Task) -> None:
    """By the metric where several choices may be measured by it, else by the outputs."""

    def chosen(sensitivity: LayerSensitivity, evaluations: int) -> QuantizedModel:
        return paredown.quantize(pattern_task, Quantize(bits=MixedBits(3.4, sensitivity=sensitivity, evaluations=evaluations)))

    by_noise, by_hessian = chosen("noise", 1), chosen("hessian", 1)
    assert by_noise.scheme != by_hessian.scheme
    held = [first_samples(pattern_task.train[0][0], 64)]  # type: ignore[index]  # a list
    nearer = min(by_noise, by_hessian, key=lambda model: noise(model, held))
    values = [score(functools.partial(call, model), pattern_task, "validation").value for model in (by_noise, by_hessian)]
    assert values[0] != values[1]
    better = (by_noise, by_hessian)[values.index(max(values))]
    for evaluations, expected in ((1, nearer), (2, better)):
        found = chosen("auto", evaluations)
        assert found.scheme == expected.scheme
        assert [row.measure for row in found.evidence.values()] == [row.measure for row in expected.evidence.values()]


def test_a_model_without_gradients_has_its_bits_chosen_by_noise() -> None:
    torch.manual_seed(0)
    model, x = Labels().eval(), torch.randn(32, 3)
    batches = [(x, torch.zeros(32, 1))]
    task = Task(model, (x[:4],), batches, batches, metric=lambda o, t: (o - t).mean(1), loss=lambda o, t: (o - t).mean())
    quantized = paredown.quantize(task, Quantize(bits=MixedBits(5, evaluations=1)))
    assert {row.measure for row in quantized.evidence.values()} == {"noise"}


def test_room_for_a_few_more_bits_goes_where_it_helps(pattern_task: Task) -> None:
    uniform = at_width(paredown.quantize(pattern_task, Quantize()), 3)  # 3.2 bits a weight, stored
    mixed = paredown.quantize(pattern_task, Quantize(bits=MixedBits(3.4, evaluations=1)))
    x = pattern_task.validation[0][0]  # type: ignore[index]  # a list
    assert relative(pattern_task.model, mixed, x) < 0.9 * relative(pattern_task.model, uniform, x)


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
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


def test_a_limit_of_latency_decides_how_many_layers_stay_in_float(
    pattern_task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    def measured(*_: object, **__: object) -> LatencyTable:
        paths = ("stem.0", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "head")
        return LatencyTable(1.0, {"": {32: 2.0}} | {path: {32: 1.3} for path in paths})

    monkeypatch.setattr(steps, "layer_latencies", measured)
    target = paredown.Target("onnxruntime", threads=1)
    floats = {}
    for limit in ("0.6x", "0.85x"):  # of the float model: 1.2 and 1.7 ms
        config = Quantize(bits=MixedBits(latency=limit, choices=(8, 32), evaluations=1))
        model = paredown.quantize(pattern_task, config, target=target)
        floats[limit] = [row.module for row in layer_bits(model) if row.weight_bits == 32]
    assert len(floats["0.6x"]) <= 1 and 2 <= len(floats["0.85x"]) <= 3
    artifact = paredown.export(model, pattern_task, target=target, path=f"{tmp_path}/m.onnx")
    floating = executed_operators(artifact.path).floating
    assert floating.get("FusedConv", 0) + floating.get("Conv", 0) >= 1


@pytest.mark.slow
def test_latencies_are_measured_layer_by_layer_and_remembered(
    pattern_task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = Quantize(bits=MixedBits(latency="1x", choices=(8, 32), evaluations=1))
    target = paredown.Target("onnxruntime", batch=8, threads=1)
    table = layer_latencies(pattern_task, pattern_task.model, config, target, reduced=True)
    assert len(table.entries) == 8 and table.at("", 32) > 0  # seven layers and the whole
    monkeypatch.setattr(timings, "latency_of", None)
    assert layer_latencies(pattern_task, pattern_task.model, config, target, reduced=True) == table


def test_a_limit_of_latency_needs_a_runtime(pattern_task: Task) -> None:
    with pytest.raises(RecipeError, match="a limit of latency holds in a runtime, got no target"):
        paredown.quantize(pattern_task, Quantize(bits=MixedBits(latency="0.5x")))


def test_bit_operations_are_limited(pattern_task: Task) -> None:
    model = paredown.quantize(pattern_task, Quantize(bits=MixedBits(bops=0.5, evaluations=1)))
    facts = facts_of(model, pattern_task.inputs)
    bits = [BitWidths(model.scheme.of(f.path).weight_bits, 8) for f in facts]
    spent = sum(float(bops_table([f], [b]).sum()) for f, b in zip(facts, bits, strict=True))
    assert 0.4 < spent / float(bops_table(facts, [BitWidths()]).sum()) <= 0.5


def test_the_rule_gives_the_heaviest_layers_the_most_bits(pattern_task: Task) -> None:
    model = paredown.quantize(pattern_task, Quantize(bits=MixedBits(bops=0.8, choices=(4, 8), method="rule")))
    facts = sorted(facts_of(model, pattern_task.inputs), key=lambda f: -f.macs)
    assert model.scheme.of(facts[0].path).weight_bits == 8 and model.scheme.of(facts[-1].path).weight_bits in (4, 8)
    assert {model.scheme.of(f.path).weight_bits for f in facts} == {4, 8}


def test_the_best_choice_beats_the_rule(pattern_task: Task) -> None:
    found, x = {}, pattern_task.validation[0][0]  # type: ignore[index]  # a list
    for method in ("exact", "rule"):
        config = Quantize(bits=MixedBits(3, choices=(2, 4, 8), method=method, evaluations=1))  # type: ignore[arg-type]  # one of two
        found[method] = relative(pattern_task.model, paredown.quantize(pattern_task, config), x)
    assert found["exact"] < found["rule"]


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


def reading(model: QuantizedModel) -> dict[str, int]:
    return {row.module: row.activation_bits for row in layer_bits(model)}


def test_what_layers_read_is_chosen_with_their_weights(pattern_task: Task) -> None:
    wanted = MixedBits(bops=0.4, choices=(4, 8), activations=(4, 8), evaluations=2)
    model = paredown.quantize(pattern_task, Quantize(bits=wanted))
    facts = facts_of(model, pattern_task.inputs)
    rows = {row.module: row for row in layer_bits(model)}
    spent = sum(f.macs * rows[f.path].weight_bits * rows[f.path].activation_bits for f in facts)
    assert spent <= 0.4 * sum(f.macs * 64 for f in facts)
    assert set(reading(model).values()) == {4, 8}
    for layer in layers_of(model):
        assert reading(model)[layer.path] == model.scheme.of(layer.path).activation_bits


def test_weights_and_activations_together_beat_weights_alone(pattern_task: Task) -> None:
    found, x = {}, pattern_task.validation[0][0]  # type: ignore[index]  # a list
    for activations in ((), (4, 8)):
        config = Quantize(bits=MixedBits(bops=0.4, choices=(2, 3, 4, 8), activations=activations, evaluations=1))
        found[activations] = relative(pattern_task.model, paredown.quantize(pattern_task, config), x)
    assert found[4, 8] <= found[()]


@pytest.mark.parametrize("sensitivity", ["metric", "hessian"])
def test_every_sensitivity_judges_what_is_read(pattern_task: Task, sensitivity: str) -> None:
    wanted = MixedBits(bops=0.5, choices=(4, 8), activations=(2, 8), sensitivity=sensitivity, evaluations=1)  # type: ignore[arg-type]
    model = paredown.quantize(pattern_task, Quantize(bits=wanted))
    assert len({row.activation_bits for row in layer_bits(model)} | {row.weight_bits for row in layer_bits(model)}) >= 2
    row = model.evidence["block2.conv1"]
    assert (row.measure, [w.bits for w in row.weights], [a.bits for a in row.activations]) == (sensitivity, [4, 8], [2, 8])
    assert row.activations[0].loss >= row.activations[1].loss


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_layers_that_read_floats_keep_their_weights_packed(pattern_task: Task, runtime: str, tmp_path: object) -> None:
    layers = {"block2.conv2": BitWidths(4, 32), "head": BitWidths(8, 32), "stem.0": BitWidths(8, 4)}
    config = Quantize(target=runtime)
    model = quantize_model(pattern_task.model, pattern_task, config, reduced=True, scheme=Scheme(layers=layers))
    rows = {row.module: row for row in layer_bits(model)}
    assert [(rows[p].weight_bits, rows[p].activation_bits) for p in layers] == [(4, 32), (8, 32), (8, 4)]
    assert rows["block2.conv2"].note.startswith("stored so, computed in float")
    assert "block2/conv2@0:bias" not in model.quantizers and rows["block2.conv1"].activation_bits == 8
    artifact = paredown.export(model, pattern_task, target=runtime, path=f"{tmp_path}/m.onnx")  # in parity with the simulation
    assert artifact.precision == "int4/int8"
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), SmallResNet(16))
    with torch.no_grad():
        assert torch.equal(loaded(*pattern_task.inputs), model(*pattern_task.inputs))


def test_float_is_chosen_for_what_layers_read_where_there_is_room(pattern_task: Task, tmp_path: object) -> None:
    wanted = MixedBits(average=4, choices=(3, 4), activations=(8, 32), evaluations=2)  # nothing speaks against float
    model = paredown.quantize(pattern_task, Quantize(bits=wanted))
    assert set(reading(model).values()) == {32} and average(model) <= 4
    paredown.export(model, pattern_task, path=f"{tmp_path}/m.onnx")


def test_a_limit_of_bytes_is_kept(pattern_task: Task) -> None:
    model = paredown.quantize(pattern_task, Quantize(bits=MixedBits(size="0.15x", evaluations=1)))
    rows = layer_bits(model)
    bytes_ = sum(row.parameters * STORED[row.weight_bits] / 8 for row in rows)
    assert 0.1 * 4 * sum(row.parameters for row in rows) < bytes_ <= 0.15 * 4 * sum(row.parameters for row in rows)


def test_bits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RecipeError, match="bits of activations are chosen by layer, or the same for all"):
        Quantize(bits=MixedBits(4, activations=(4, 8)), activations=Activations(bits=4))
    with pytest.raises(RecipeError, match=r"must be at least two different ones of 32, 16, 8, 4, 3, 2, got \(12, 8\)"):
        MixedBits(4, activations=(12, 8))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_layers_of_16_bits_are_stored_in_16_and_compute_in_float(pattern_task: Task, tmp_path: Path, runtime: str) -> None:
    step = Quantize(bits=MixedBits(average=12, choices=(8, 16), activations=(8, 16), evaluations=1))
    model = paredown.quantize(pattern_task, step, target=runtime)
    rows = layer_bits(model)
    assert {row.weight_bits for row in rows} == {8, 16}
    assert all(("computed in float" in row.note) == (max(row.weight_bits, row.activation_bits) == 16) for row in rows)
    artifact = paredown.export(model, pattern_task, target=runtime, path=tmp_path / "m.onnx")  # raises where the file differs
    assert artifact.precision == "int8/int16"
    whole = paredown.export(pattern_task.model, pattern_task, target=runtime, path=tmp_path / "float.onnx")
    assert artifact.size_bytes < 0.75 * whole.size_bytes


def test_16_bits_of_weights_and_of_what_is_read_lose_next_to_nothing(pattern_task: Task) -> None:
    scheme = Scheme(BitWidths(16, 16))
    model = quantize_model(pattern_task.model, pattern_task, Quantize(target="onnxruntime"), reduced=False, scheme=scheme)
    (x,) = pattern_task.example_inputs
    assert relative(pattern_task.model, model, x) < 1e-4
    with pytest.raises(RecipeError, match="two-sided grids have at most 8 bits"):
        Quantize(bits=MixedBits(average=12, choices=(8, 16)), activations=Activations(two_sided=True))


def test_the_search_stays_where_only_noise_speaks_for_another_choice(pattern_task: Task) -> None:
    """A metric that says nothing: coin flips, drawn from the outputs themselves, so that each assignment gets others."""

    def coin(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return ((output * 1e4).round().sum(1) % 2 == 0).double()

    task = dataclasses.replace(pattern_task, metric=coin)
    found = [
        [
            row.weight_bits
            for row in layer_bits(paredown.quantize(task, Quantize(bits=MixedBits(3.4, sensitivity="noise", evaluations=n))))
        ]
        for n in (1, 12)
    ]
    assert found[0] == found[1]


def test_a_checkpoint_and_a_recipe_keep_the_bits_of_what_is_read(pattern_task: Task, tmp_path: object) -> None:
    config = Quantize(bits=MixedBits(bops=0.4, choices=(4, 8), activations=(8, 4), size="0.2x", evaluations=1))
    assert Recipe.parse(Recipe((config,)).to_yaml()).steps == (config,)
    model = paredown.quantize(pattern_task, config)
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), SmallResNet(16))
    assert isinstance(loaded, QuantizedModel)
    assert (loaded.scheme, dict(loaded.evidence), reading(loaded)) == (model.scheme, dict(model.evidence), reading(model))
    with torch.no_grad():
        assert torch.equal(loaded(*pattern_task.inputs), model(*pattern_task.inputs))
