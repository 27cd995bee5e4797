"""Bits per layer for a whole model: sensitivities, the exact choice under a limit, verification by the task's metric.

The calibrated model is copied once for each choice of bits, with all its weights at that width; activations keep their grids.
From these copies come the sensitivities (`sensitivity.py`), and the grids of what `mixed.py` chooses.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from paredown.core.errors import RecipeError
from paredown.core.progress import Progress, silent
from paredown.core.steps import MixedBits, Quantize
from paredown.measure.quality import score
from paredown.quantization.layers import layers_of
from paredown.quantization.mixed import Assignment, Facts, Table, choose, facts_of, repair, stored_bits
from paredown.quantization.model import QuantizedModel
from paredown.quantization.refine import held_batches, refine_
from paredown.quantization.scheme import BitWidths, Scheme, weight_grid
from paredown.quantization.sensitivity import hessian_table, hessian_traces, metric_table, noise_table, own_distance
from paredown.quantization.static import calibrate_, prepare_for, set_bias_scales_, set_weight_scales_
from paredown.task.batches import Inputs, call
from paredown.task.task import Task

_SAMPLES = 64  # of training data, for sensitivities


def quantize_mixed(
    model: nn.Module, task: Task, config: Quantize, *, reduced: bool, progress: Progress = silent
) -> QuantizedModel:
    """A calibrated simulation of `model`, which is left untouched, with the bits of each layer chosen as config.bits says.

    config.bits: MixedBits. `scheme` of the result holds the bits. Raises what `quantize_model` raises.
    """
    quantized = prepare_for(task, model, config, reduced=reduced)
    wanted = config.bits
    if not isinstance(wanted, MixedBits):
        raise RecipeError("bits chosen by layer are asked for by MixedBits", got=wanted, remedy="write bits=MixedBits(average=4)")

    def calibrated() -> None:
        calibrate_(quantized, task, progress)
        assign_(quantized, task, wanted, progress)

    refine_(quantized, task, calibrated, progress)
    return quantized


def assign_(model: QuantizedModel, task: Task, wanted: MixedBits, progress: Progress = silent) -> tuple[int, ...]:
    """Chooses the bits of every layer and puts its weight on that grid; returns them, in the order of `layers_of`."""
    progress("choosing bits", 0.0)
    batches = held_batches(model, task, _SAMPLES)
    candidates = {bits: at_width(model, bits) for bits in wanted.choices}
    facts = facts_of(model, batches[0])
    sensitivity = _sensitivity(wanted, list(candidates.values()), task, batches)
    costs = {"size": stored_table(facts, wanted.choices)}
    limits = {"size": wanted.average * sum(f.parameters for f in facts)}
    chosen = choose(sensitivity, costs, limits)
    if wanted.evaluations > 1:
        measure = _measuring(model, candidates, task, wanted, progress)
        chosen = repair(chosen, sensitivity, costs, limits, measure, evaluations=wanted.evaluations).assignment
    bits = tuple(wanted.choices[c] for c in chosen)
    _take_(model, candidates, bits)
    model.scheme = _scheme(model, bits)
    progress("choosing bits", 1.0)
    return bits


def _measuring(
    model: QuantizedModel, candidates: Mapping[int, QuantizedModel], task: Task, wanted: MixedBits, progress: Progress
) -> Callable[[Assignment], float]:
    """The task's metric of an assignment on validation data, lower is better; `model` itself stays as it is."""
    trial, done = copy.deepcopy(model), 0

    def measure(assignment: Assignment) -> float:
        nonlocal done
        done += 1
        progress("choosing bits", min(0.99, done / wanted.evaluations))
        _take_(trial, candidates, [wanted.choices[c] for c in assignment])
        value = score(lambda inputs: call(trial, inputs), task, "validation").value
        return -value if task.scorer.higher_is_better else value

    return measure


def at_width(model: QuantizedModel, bits: int) -> QuantizedModel:
    """A copy with every layer's weight on a grid of so many bits."""
    copied = copy.deepcopy(model)
    for layer in layers_of(copied):
        layer.quantizer(copied).grid = weight_grid(BitWidths(bits), reduced=copied.reduced)
    with torch.no_grad():
        set_weight_scales_(copied)
    return copied


def stored_table(facts: Sequence[Facts], choices: Sequence[int]) -> Table:
    """Bits of the weights as they lie in the file, scales left out: (layers, choices)."""
    return np.array([[f.parameters * stored_bits(bits) for bits in choices] for f in facts], dtype=np.float64)


def _sensitivity(wanted: MixedBits, models: Sequence[QuantizedModel], task: Task, batches: Sequence[Inputs]) -> Table:
    match wanted.sensitivity:
        case "noise":
            return noise_table(models, batches)
        case "metric":
            return metric_table(models, task)
        case "hessian":
            return hessian_table(models, hessian_traces(models[0], own_distance, [(inputs, None) for inputs in batches]))


@torch.no_grad()
def _take_(model: QuantizedModel, candidates: Mapping[int, QuantizedModel], bits: Sequence[int]) -> None:
    """Each layer's weight gets the grid that it has in the candidate of its bits."""
    for layer, width in zip(layers_of(model), bits, strict=True):
        found, own = layer.quantizer(candidates[width]), layer.quantizer(model)
        own.grid = found.grid
        own.set_(found.scale, found.zero_point)
    set_bias_scales_(model)


def _scheme(model: QuantizedModel, bits: Sequence[int]) -> Scheme:
    before = model.scheme
    layers = zip(layers_of(model), bits, strict=True)
    named = {layer.path: dataclasses.replace(before.of(layer.path), weight_bits=b) for layer, b in layers}
    return Scheme(before.default, {**before.layers, **named}, before.embeddings)
