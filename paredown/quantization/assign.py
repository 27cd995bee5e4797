"""Bits per layer for a whole model: sensitivities, the exact choice under limits, verification by the task's metric.

A probe, calibrated with 8 bits everywhere, is copied once for each choice of bits, with all its weights at that width;
activations keep their grids. From these copies come the sensitivities (`sensitivity.py`) and what `mixed.py` verifies. The model
is then quantized anew with the bits that were chosen: a layer in float moves the quantizers of those around it.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from paredown.core.budget import parse_limit
from paredown.core.errors import RecipeError
from paredown.core.progress import Progress, silent
from paredown.core.steps import MixedBits, Quantize
from paredown.measure.latency_table import LatencyTable
from paredown.measure.quality import Scores, drop, score
from paredown.quantization.layers import layers_of
from paredown.quantization.mixed import (
    Assignment,
    Facts,
    Table,
    bops_table,
    choose,
    facts_of,
    latency_table,
    repair,
    rule_of_thumb,
    stored_bits,
)
from paredown.quantization.model import QuantizedModel
from paredown.quantization.refine import held_batches
from paredown.quantization.scheme import FLOAT, BitWidths, Scheme, weight_grid
from paredown.quantization.sensitivity import hessian_table, hessian_traces, input_key, metric_table, noise_table, own_distance
from paredown.quantization.static import quantize_model, set_bias_scales_, set_weight_scales_
from paredown.task.batches import Inputs, call
from paredown.task.task import Task

_SAMPLES = 64  # of training data, for sensitivities
_ERROR = 0.05  # the chance that noise moves the local search at all
WHOLE = ""  # in a table of latencies: all layers together
_BEFORE = ("smooth", "equalization")  # refinements that sensitivities are measured behind


def quantize_mixed(
    model: nn.Module,
    task: Task,
    config: Quantize,
    *,
    reduced: bool,
    latencies: LatencyTable | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """A calibrated simulation of `model`, which is left untouched, with the bits of each layer chosen as config.bits says.

    config.bits: MixedBits. latencies: as `mixed.latency_table` wants them, and of the whole model in float under WHOLE; needed
    where it has a limit of latency. `scheme` of the result holds the bits.
    Raises what `quantize_model` raises, BudgetError where no assignment keeps the limits.
    """
    wanted = config.bits
    if not isinstance(wanted, MixedBits):
        raise RecipeError("bits chosen by layer are asked for by MixedBits", got=wanted, remedy="write bits=MixedBits(average=4)")
    before = dataclasses.replace(config, refine=tuple(name for name in config.refine if name in _BEFORE))
    probe = quantize_model(model, task, before, reduced=reduced, progress=progress)
    bits = choose_bits(probe, task, wanted, latencies, progress)
    return quantize_model(model, task, config, reduced=reduced, scheme=_scheme(probe, bits), progress=progress)


def choose_bits(
    probe: QuantizedModel, task: Task, wanted: MixedBits, latencies: LatencyTable | None = None, progress: Progress = silent
) -> tuple[int, ...]:
    """The bits of every layer, in the order of `layers_of`. probe: calibrated, in 8 bits; it is left as it is."""
    progress("choosing bits", 0.0)
    batches = held_batches(probe, task, _SAMPLES)
    candidates = {bits: at_width(probe, bits) for bits in wanted.choices if bits != FLOAT}
    facts = facts_of(probe, batches[0])
    costs = _costs(facts, wanted, probe.config.activations.bits, latencies)
    limits = _limits(facts, wanted, latencies)
    if wanted.method == "rule":
        chosen = rule_of_thumb(facts, costs, limits, low=0, high=len(wanted.choices) - 1)
    else:
        sensitivity = _sensitivity(wanted, list(candidates.values()), task, batches)
        chosen = choose(sensitivity, costs, limits)
        if wanted.evaluations > 1:
            measure, better = _measuring(probe, candidates, task, wanted, progress), _better(wanted.evaluations)
            chosen = repair(chosen, sensitivity, costs, limits, measure, better, evaluations=wanted.evaluations).assignment
    progress("choosing bits", 1.0)
    return tuple(wanted.choices[c] for c in chosen)


def _costs(
    facts: Sequence[Facts], wanted: MixedBits, activation_bits: int, latencies: LatencyTable | None
) -> dict[str, Table]:  # fmt: skip
    choices = [BitWidths(FLOAT, FLOAT) if bits == FLOAT else BitWidths(bits, activation_bits) for bits in wanted.choices]
    costs = {"average": stored_table(facts, wanted.choices), "bops": bops_table(facts, choices)}
    return costs if latencies is None else costs | {"latency": latency_table(facts, choices, latencies)}


def _limits(facts: Sequence[Facts], wanted: MixedBits, latencies: LatencyTable | None) -> dict[str, float]:
    limits = {}
    if wanted.average is not None:
        limits["average"] = wanted.average * sum(f.parameters for f in facts)
    if wanted.bops is not None:
        limits["bops"] = wanted.bops * float(bops_table(facts, [BitWidths()]).sum())
    if wanted.latency is not None:
        if latencies is None:
            raise RecipeError(
                "a limit of latency needs measured latencies", got="none", remedy="call paredown.quantize(..., target=...)"
            )
        limits["latency"] = parse_limit("latency", wanted.latency).absolute(latencies.at(WHOLE, FLOAT))
    return limits


def _better(evaluations: int) -> Callable[[Scores, Scores], bool]:
    """Whether scores are significantly better than others, however many are compared."""
    confidence = 1 - _ERROR / evaluations

    def better(candidate: Scores, current: Scores) -> bool:
        high = drop(current, candidate, confidence).high
        return high is not None and high < 0

    return better


def _measuring(
    probe: QuantizedModel, candidates: Mapping[int, QuantizedModel], task: Task, wanted: MixedBits, progress: Progress
) -> Callable[[Assignment], Scores]:
    """The task's metric of an assignment on validation data; the probe itself stays as it is."""
    trial, done = copy.deepcopy(probe), 0

    def measure(assignment: Assignment) -> Scores:
        nonlocal done
        done += 1
        progress("choosing bits", min(0.99, done / wanted.evaluations))
        _take_(trial, candidates, [wanted.choices[c] for c in assignment])
        return score(lambda inputs: call(trial, inputs), task, "validation")

    return measure


def at_width(model: QuantizedModel, bits: int) -> QuantizedModel:
    """A copy with every layer's weight on a grid of so many bits."""
    copied = copy.deepcopy(model)
    for layer in layers_of(copied):
        widths = dataclasses.replace(copied.scheme.of(layer.path), weight_bits=bits)
        layer.quantizer(copied).grid = weight_grid(widths, reduced=copied.reduced)
    with torch.no_grad():
        set_weight_scales_(copied)
    return copied


def stored_table(facts: Sequence[Facts], choices: Sequence[int]) -> Table:
    """Bits of the weights as they lie in the file, scales left out: (layers, choices)."""
    return np.array([[f.parameters * stored_bits(bits) for bits in choices] for f in facts], dtype=np.float64)


def _sensitivity(wanted: MixedBits, models: Sequence[QuantizedModel], task: Task, batches: Sequence[Inputs]) -> Table:
    """(layers, choices); nothing is lost in float, the last choice if it is one."""
    match wanted.sensitivity:
        case "noise":
            table = noise_table(models, batches)
        case "metric":
            table = metric_table(models, task)
        case "hessian":
            table = hessian_table(models, hessian_traces(models[0], own_distance, [(inputs, None) for inputs in batches]))
    return np.pad(table, ((0, 0), (0, len(wanted.choices) - len(models))))


@torch.no_grad()
def _take_(model: QuantizedModel, candidates: Mapping[int, QuantizedModel], bits: Sequence[int]) -> None:
    """Each layer's weight gets the grid that it has in the candidate of its bits; what float layers alone read gets none."""
    layers = layers_of(model)
    integer = {input_key(layer) for layer, width in zip(layers, bits, strict=True) if width != FLOAT}
    for layer, width in zip(layers, bits, strict=True):
        own, read = layer.quantizer(model), input_key(layer)
        for key in {f"{layer.key}:weight", f"{layer.key}:bias"} & set(model.quantizers):
            model.quantizer(key).enabled = width != FLOAT
        if read:
            model.quantizer(read).enabled = read in integer
        if width != FLOAT:
            found = layer.quantizer(candidates[width])
            own.grid = found.grid
            own.set_(found.scale, found.zero_point)
    set_bias_scales_(model)


def _scheme(probe: QuantizedModel, bits: Sequence[int]) -> Scheme:
    before = probe.scheme
    layers = zip(layers_of(probe), bits, strict=True)
    named = {
        layer.path: BitWidths(FLOAT) if b == FLOAT else dataclasses.replace(before.of(layer.path), weight_bits=b)
        for layer, b in layers
    }
    return Scheme(before.default, {**before.layers, **named}, before.embeddings)
