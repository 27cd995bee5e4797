"""What quantization does to a task's model layer by layer, in the simulation and in the runtime, and what would mend it."""

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paredown.core.errors import RecipeError
from paredown.core.progress import Progress, silent
from paredown.core.report import NoisyLayer, Operators
from paredown.core.steps import MixedBits, Quantize, Weights
from paredown.core.target import Target
from paredown.deploy.capabilities import executed_operators
from paredown.deploy.onnx import Built, build, write_onnx
from paredown.deploy.per_layer import LayerRun, layer_runs
from paredown.pipeline.steps import quantize
from paredown.quantization.model import QuantizedModel
from paredown.quantization.noise import LayerNoise, layer_noise
from paredown.quantization.refine import held_batches
from paredown.task.task import Task

INTEGER_KINDS = ("static", "dynamic", "weight_only")
_SAMPLES = 64  # of training data, in torch
_RUN_SAMPLES = 8  # of these in the runtime, whose values are all held
_FINE_DB, _HOPELESS_DB = 20.0, 6.0  # an error of 1 % of the signal's power; of a quarter of it
_MOST_DB = 150.0  # what stands for no noise at all


@dataclass(frozen=True)
class Diagnosis:
    """layers: one row for each on an integer grid, the noisiest first. operators: what the runtime computes on integers, and what
    fell back to floats.
    """

    layers: tuple[NoisyLayer, ...]
    operators: Operators


def diagnose(task: Task, config: Quantize, target: Target | str, *, progress: Progress = silent) -> Diagnosis:
    """Of the task's model, quantized so. Nothing of the task is changed.

    Raises RecipeError for a kind without integer grids, and what `quantize` and the export raise.
    """
    if config.kind not in INTEGER_KINDS:
        raise RecipeError("layers are looked at on integer grids", got=f"kind={config.kind!r}", remedy='write kind="static"')
    where = Target.of(target)
    model = quantize(task, config, target=where, progress=progress)
    layers, built = _diagnosed(task, model, where, _SAMPLES, progress)
    with tempfile.TemporaryDirectory(prefix="paredown-") as folder:  # unchecked: what is wrong with it stands in the layers
        artifact = write_onnx(built, Path(folder) / "model.onnx", where)
        return Diagnosis(layers, executed_operators(artifact.path, where))


def diagnosed(
    task: Task, model: QuantizedModel, where: Target, *, samples: int = _SAMPLES, progress: Progress = silent
) -> tuple[NoisyLayer, ...]:
    """The layers of a model that is quantized (and perhaps trained) already. samples: of training data, in torch."""
    return _diagnosed(task, model, where, samples, progress)[0]


def _diagnosed(
    task: Task, model: QuantizedModel, where: Target, samples: int, progress: Progress
) -> tuple[tuple[NoisyLayer, ...], Built]:
    """Likewise, and the ONNX model that was looked at."""
    config = model.config
    batches = held_batches(model, task, samples)
    progress("layer by layer", 0.0)
    noises = layer_noise(model, batches)
    few = held_batches(model, task, _RUN_SAMPLES)[0]
    built = build(model, few, task.dynamic)
    runs = _matched(noises, layer_runs(built, few, where))
    progress("layer by layer", 1.0)
    rows = (_row(noise, run, config, reduced=model.reduced) for noise, run in zip(noises, runs, strict=True))
    return tuple(sorted(rows, key=lambda row: row.simulated_db)), built


def _matched(noises: Sequence[LayerNoise], runs: Sequence[LayerRun]) -> list[LayerRun | None]:
    """The run of each layer: of a module with several (the calls of one that runs twice, the projections of an attention) in
    order, where there are as many; None where that can't be told.
    """
    by_module: dict[str, list[LayerRun]] = {}
    for run in runs:
        by_module.setdefault(run.module, []).append(run)
    expected = Counter(noise.path for noise in noises)
    told = {path: iter(found) for path, found in by_module.items() if len(found) == expected[path]}
    return [next(told[noise.path]) if noise.path in told else None for noise in noises]


def _row(noise: LayerNoise, run: LayerRun | None, config: Quantize, *, reduced: bool) -> NoisyLayer:
    saturated = 0 if run is None else run.saturated
    simulated = min(noise.both if run is None else run.simulated_db, _MOST_DB)
    return NoisyLayer(
        module=noise.path,
        operator=noise.operator,
        simulated_db=simulated,
        runtime_db=None if run is None else run.runtime_db,
        clipped=noise.clipped,
        saturated=saturated,
        remedy=remedy(noise, saturated, config, reduced=reduced, db=simulated),
    )


def remedy(noise: LayerNoise, saturated: int, config: Quantize, *, reduced: bool, db: float = math.inf) -> str:
    """What to write in the step; empty where the layer is fine. db: on the samples that the runtime saw."""
    kept = _kept(noise)
    if saturated:
        return kept if reduced or not config.weights.symmetric else 'weights=Weights(range="reduced")'
    if noise.both >= _FINE_DB:
        return "" if db >= _FINE_DB else kept
    coarse = noise.activations < noise.weights
    if coarse and config.activations.observer != "mse":  # which clips too much, or too little
        return 'activations=Activations(observer="mse")'
    return kept if coarse or noise.both < _HOPELESS_DB else _for_weights(config) or kept


def _kept(noise: LayerNoise) -> str:
    return f'protect=("{noise.path}",)'


def _for_weights(config: Quantize) -> str:
    """Scales for fewer numbers, or better rounding; empty where both are there already."""
    if config.kind == "weight_only":
        finer = config.weights.group > Weights.group
        return f"weights=Weights(group={Weights.group})" if finer else 'weights=Weights(method="gptq")'
    if config.kind == "static" and not {"adaround", "brecq"}.intersection(config.refine):
        return 'refine=("adaround",)'
    few = isinstance(config.bits, MixedBits) or config.bits < 8
    return "bits=8" if few else ""
