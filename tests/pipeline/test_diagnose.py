"""What quantization costs layer by layer: in the runtime as in the simulation, the noisiest first, each with its remedy."""

import math

import pytest
import torch

import paredown
from paredown import Activations, Quantize, Task, Weights
from paredown.core.errors import RecipeError
from paredown.core.report import Profile
from paredown.core.target import Target
from paredown.deploy.onnx import build
from paredown.deploy.per_layer import LayerRun, layer_runs
from paredown.pipeline.diagnose import _matched, diagnose, remedy
from paredown.quantization.layers import layers_of
from paredown.quantization.noise import LayerNoise, layer_noise
from paredown.quantization.refine import held_batches


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_the_runtime_loses_as_much_as_the_simulation(pattern_task: Task, runtime: str) -> None:
    rows = diagnose(pattern_task, Quantize(samples=64), Target(runtime, threads=1)).layers  # type: ignore[arg-type]  # a parameter
    assert [row.simulated_db for row in rows] == sorted(row.simulated_db for row in rows) and len(rows) == 7
    found = [row for row in rows if row.runtime_db is not None]
    assert len(found) >= 5  # OpenVINO takes two layers with their sum as one operator
    assert all(abs(row.simulated_db - row.runtime_db) < 1 and row.saturated == 0 for row in found)  # type: ignore[operator]  # not None
    assert all(row.simulated_db > 20 and row.remedy == "" for row in rows)


@pytest.mark.slow
def test_low_bits_are_told_with_their_remedy(pattern_task: Task) -> None:
    rows = {row.module: row for row in diagnose(pattern_task, Quantize(bits=2, samples=64), Target(threads=1)).layers}
    assert rows["block2.conv2"].simulated_db < 20 < rows["stem.0"].simulated_db
    assert rows["block2.conv2"].remedy in ('refine=("adaround",)', 'protect=("block2.conv2",)') and not rows["stem.0"].remedy


@pytest.mark.slow
def test_clipping_is_counted(pattern_task: Task) -> None:
    config = Quantize(samples=64, activations=Activations(observer="percentile", percentile=80))
    rows = diagnose(pattern_task, config, Target(threads=1)).layers
    assert rows[0].clipped > 0.1 and "observer" in rows[0].remedy


def test_outputs_that_rounding_does_not_explain_are_counted_at_their_layer(pattern_task: Task) -> None:
    model, where = paredown.quantize(pattern_task, Quantize(samples=64)), Target(threads=1)
    x = held_batches(model, pattern_task, 8)[0]
    built = build(model, x)
    with torch.no_grad():
        built.program.state_dict["block1.conv1.weight"][:2].mul_(0.1)  # what the file computes is another layer than this one
    runs = {run.module: run for run in layer_runs(built, x, where)}
    assert [name for name, run in runs.items() if run.saturated] == ["block1.conv1"]
    assert runs["block1.conv1"].runtime_db < runs["block1.conv1"].simulated_db - 3


def test_noise_is_told_apart_by_its_part(pattern_task: Task) -> None:
    model = paredown.quantize(pattern_task, Quantize(samples=64))
    x = held_batches(model, pattern_task, 16)
    head = layer_noise(model, x)[-1]
    layer = layers_of(model)[-1]
    model.quantizer("head@0:weight").enabled = False
    without = layer_noise(model, x)[-1]
    assert math.isinf(without.weights) and without.both == pytest.approx(head.activations, abs=1e-6)
    assert head.path == layer.path == "head" and head.both < min(head.weights, head.activations)


@pytest.mark.parametrize(
    "weights, activations, clipped, saturated, config, wanted",
    [
        (40, 40, 0, 0, Quantize(), ""),
        (40, 40, 0, 3, Quantize(), 'weights=Weights(range="reduced")'),
        (12, 30, 0, 0, Quantize(bits=3), 'refine=("adaround",)'),
        (12, 30, 0, 0, Quantize(bits=3, refine=("adaround",)), "bits=8"),
        (30, 5, 0.01, 0, Quantize(), 'protect=("a.b",)'),
        (30, 12, 0, 0, Quantize(activations=Activations(observer="minmax")), 'activations=Activations(observer="mse")'),
        (30, 12, 0, 0, Quantize(), 'protect=("a.b",)'),
        (
            30,
            12,
            0,
            0,
            Quantize(activations=Activations(observer="percentile")),
            'activations=Activations(observer="mse")',
        ),
        (3, 3, 0, 0, Quantize(), 'protect=("a.b",)'),
        (12, 99, 0, 0, Quantize(kind="weight_only", bits=4, weights=Weights(group=128)), "weights=Weights(group=32)"),
        (12, 99, 0, 0, Quantize(kind="weight_only", bits=4), 'weights=Weights(method="gptq")'),
    ],
)
def test_each_cause_has_its_remedy(
    weights: float, activations: float, clipped: float, saturated: int, config: Quantize, wanted: str
) -> None:
    noise = LayerNoise("a.b", "conv2d", min(weights, activations) - 1, weights, activations, clipped)
    assert remedy(noise, saturated, config, reduced=False) == wanted


def test_layers_of_one_module_have_a_run_each_and_what_cannot_be_told_has_none() -> None:
    noises = [LayerNoise(path, "linear", 40.0, 40.0, 40.0, 0.0) for path in ("a", "twice", "", "twice")]
    runs = [LayerRun(path, db, db, 0) for path, db in (("twice", 30.0), ("a", 31.0), ("twice", 32.0), ("", 33.0), ("", 34.0))]
    assert [run and run.simulated_db for run in _matched(noises, runs)] == [31.0, 30.0, None, 32.0]


def test_kinds_without_grids_are_refused(pattern_task: Task) -> None:
    with pytest.raises(RecipeError, match="looked at on integer grids, got kind='fp16'"):
        diagnose(pattern_task, Quantize(kind="fp16"), Target(threads=1))


@pytest.mark.slow
def test_a_profile_with_noise_round_trips(pattern_task: Task) -> None:
    profile = paredown.analyze(pattern_task, Target(batch=4, threads=1), quantization=Quantize(samples=64))
    assert len(profile.quantization) == 7 and Profile.from_json(profile.to_json()) == profile
