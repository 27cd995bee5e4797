"""Bits per layer for a whole model: sensitivities, the exact choice under limits, verification by the task's metric.

A probe, calibrated with 8 bits everywhere, is copied once for each choice of bits, with all its weights at that width, or all
that layers read (calibrated anew). From these copies come the sensitivities (`sensitivity.py`) and what `mixed.py` verifies. The
model is then quantized anew with the bits that were chosen: a layer in float moves the quantizers of those around it.
"""

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from paredown.core.budget import parse_limit
from paredown.core.errors import NotTrainableError, RecipeError
from paredown.core.precision import LayerSensitivity
from paredown.core.progress import Progress, silent
from paredown.core.report import BitsSensitivity, WidthLoss
from paredown.core.steps import MixedBits, Quantize
from paredown.measure.latency_table import LatencyTable
from paredown.measure.quality import Scores, drop, score
from paredown.quantization.costs import (
    Facts,
    Table,
    bops_table,
    facts_of,
    latency_table,
    size_table,
    stored_table,
)
from paredown.quantization.layers import layers_of
from paredown.quantization.mixed import Assignment, Problem, Sharing, choose, repair, rule_of_thumb
from paredown.quantization.model import QuantizedModel
from paredown.quantization.placement import key_before
from paredown.quantization.refine import held_batches
from paredown.quantization.scheme import FLOAT, BitWidths, Scheme, activation_grid, weight_grid
from paredown.quantization.sensitivity import (
    hessian_table,
    hessian_table_of_tensors,
    hessian_traces,
    metric_table,
    noise,
    noise_table,
    tensors_of,
)
from paredown.quantization.static import calibrate_, quantize_model, set_bias_scales_, set_weight_scales_
from paredown.task.batches import Inputs, call
from paredown.task.task import Task

_log = logging.getLogger(__name__)
_SAMPLES = 64  # of training data, for sensitivities
_ERROR = 0.05  # the chance that noise moves the local search at all
WHOLE = ""  # in a table of latencies: all layers together
_BEFORE = ("smooth", "equalization")  # refinements that sensitivities are measured behind


@dataclass(frozen=True)
class Candidates:
    """Copies of the probe: by the bits of all weights, and by the bits of all that layers read; 32 is in neither."""

    weights: Mapping[int, QuantizedModel]
    activations: Mapping[int, QuantizedModel]


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
    chosen = choose_bits(probe, task, wanted, latencies, progress)
    scheme = _scheme(probe, chosen.bits, read=bool(wanted.activations))
    result = quantize_model(model, task, config, reduced=reduced, scheme=scheme, progress=progress)
    result.evidence = {f.path: row for f, row in zip(chosen.facts, chosen.evidence, strict=True)}
    return result


@dataclass(frozen=True)
class Chosen:
    """The bits of every layer, in the order of `layers_of`, and what was known of it."""

    bits: tuple[BitWidths, ...]
    facts: tuple[Facts, ...]
    evidence: tuple[BitsSensitivity, ...]


def choose_bits(
    probe: QuantizedModel, task: Task, wanted: MixedBits, latencies: LatencyTable | None = None, progress: Progress = silent
) -> Chosen:
    """probe: calibrated, in 8 bits; it is left as it is."""
    progress("choosing bits", 0.0)
    batches = held_batches(probe, task, _SAMPLES)
    levels = wanted.activations or (probe.config.activations.bits,)
    candidates = _candidates(probe, task, wanted.choices, levels)
    facts, choices = facts_of(probe, batches[0]), _choices(wanted.choices, levels)
    costs, limits = _costs(facts, choices, latencies), _limits(facts, wanted, latencies)

    def posed(kind: LayerSensitivity) -> _Posed:
        weights, read = _losses(kind, wanted, candidates, task, batches)
        sharing = _sharing(probe, choices, levels, read) if wanted.activations else None
        own = weights[:, [wanted.choices.index(c.weight_bits) for c in choices]]
        problem = Problem(own, costs, limits, sharing, _modules(facts))
        by_rule = wanted.method == "rule"
        found = rule_of_thumb(facts, problem, low=0, high=len(choices) - 1) if by_rule else choose(problem)
        return _Posed(kind, (weights, read), problem, found)

    verified, sign = wanted.method == "exact" and wanted.evaluations > 1, -1 if task.scorer.higher_is_better else 1
    copied = functools.cache(functools.partial(copy.deepcopy, probe))  # made where one is tried, and then the same for all

    def tried(found: Assignment) -> QuantizedModel:
        _take_(copied(), candidates, [choices[c] for c in found])
        return copied()

    measure = functools.cache(_measuring(tried, task, wanted.evaluations, progress))

    def lost(found: Assignment) -> tuple[float, float]:
        return sign * measure(found).value if verified else 0.0, noise(tried(found), batches)

    first = _first(wanted, posed, lost)
    found = first.found
    if verified:
        left = wanted.evaluations - max(measure.cache_info().currsize - 1, 0)
        found = repair(found, first.problem, measure, _better(wanted.evaluations), evaluations=left).assignment
    progress("choosing bits", 1.0)
    evidence = _evidence(probe, facts, wanted, first, latencies)
    return Chosen(tuple(choices[c] for c in found), facts, evidence)


@dataclass(frozen=True)
class _Posed:
    """A kind of sensitivity, its tables (of weights, of what is read), the problem they pose, and what solves it."""

    kind: LayerSensitivity
    losses: tuple[Table, Table]
    problem: Problem
    found: Assignment


def _first(
    wanted: MixedBits, posed: Callable[[LayerSensitivity], _Posed], lost: Callable[[Assignment], tuple[float, float]]
) -> _Posed:
    """As asked. "auto": of what noise and Hessian lead to, that which loses less, all layers together: the noise of a layer on a
    coarse grid is bounded, the Hessian's prediction isn't, and neither knows of the others. lost: the lesser pair loses less.
    """
    if wanted.sensitivity != "auto":
        return posed(wanted.sensitivity)
    by_noise = posed("noise")
    if wanted.method == "rule":  # which doesn't read it
        return by_noise
    try:
        by_hessian = posed("hessian")
    except NotTrainableError as error:
        _log.info("the sensitivity of layers is the noise of the output: %s", error)
        return by_noise
    return by_noise if by_noise.found == by_hessian.found else min(by_noise, by_hessian, key=lambda each: lost(each.found))


def _choices(weights: Sequence[int], activations: Sequence[int]) -> tuple[BitWidths, ...]:
    """Every width of weights with every one of what is read; where weights are float, so is what is read."""
    whole = (BitWidths(FLOAT, FLOAT),) if FLOAT in weights else ()
    return (*(BitWidths(w, a) for w in weights if w != FLOAT for a in activations), *whole)


def _candidates(probe: QuantizedModel, task: Task, weights: Sequence[int], activations: Sequence[int]) -> Candidates:
    own = probe.config.activations.bits
    read = {a: probe if a == own else reading_at(probe, task, a) for a in activations if a != FLOAT}
    return Candidates({w: at_width(probe, w) for w in weights if w != FLOAT}, read)


def _sharing(probe: QuantizedModel, choices: tuple[BitWidths, ...], levels: tuple[int, ...], losses: Table) -> Sharing:
    keys = tensors_of(probe)
    return Sharing(choices, tuple(keys.index(key_before(layer.node)) for layer in layers_of(probe)), levels, losses)


def _modules(facts: Sequence[Facts]) -> tuple[int, ...]:
    paths = [f.path for f in facts]
    return tuple(paths.index(path) for path in paths)


def _costs(facts: Sequence[Facts], choices: Sequence[BitWidths], latencies: LatencyTable | None) -> dict[str, Table]:
    costs = {"average": stored_table(facts, choices), "size": size_table(facts, choices), "bops": bops_table(facts, choices)}
    return costs if latencies is None else costs | {"latency": latency_table(facts, choices, latencies)}


def _limits(facts: Sequence[Facts], wanted: MixedBits, latencies: LatencyTable | None) -> dict[str, float]:
    limits, weights = {}, sum(f.parameters for f in facts)
    if wanted.average is not None:
        limits["average"] = wanted.average * weights
    if wanted.size is not None:
        limits["size"] = parse_limit("size", wanted.size).absolute(4.0 * weights)
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
    tried: Callable[[Assignment], QuantizedModel], task: Task, evaluations: int, progress: Progress
) -> Callable[[Assignment], Scores]:
    """The task's metric of an assignment on validation data. tried: the model with its bits."""
    done = 0

    def measure(assignment: Assignment) -> Scores:
        nonlocal done
        done += 1
        progress("choosing bits", min(0.99, done / evaluations))
        trial = tried(assignment)
        return score(lambda inputs: call(trial, inputs), task, "validation")

    return measure


def at_width(model: QuantizedModel, bits: int) -> QuantizedModel:
    """A copy with every layer's weight on a grid of so many bits."""
    copied = copy.deepcopy(model)
    for layer in layers_of(copied):
        widths = dataclasses.replace(copied.scheme.of(layer.path), weight_bits=bits)
        layer.quantizer(copied).grid = weight_grid(widths, copied.config.weights, reduced=copied.reduced)
    with torch.no_grad():
        set_weight_scales_(copied)
    return copied


def reading_at(model: QuantizedModel, task: Task, bits: int) -> QuantizedModel:
    """A copy, calibrated anew, in which every layer reads so many bits."""
    copied = copy.deepcopy(model)
    for key in tensors_of(copied):
        copied.quantizer(key).grid = activation_grid(bits, copied.config.activations)
    calibrate_(copied, task)
    return copied


def _losses(
    kind: LayerSensitivity, wanted: MixedBits, candidates: Candidates, task: Task, batches: Sequence[Inputs]
) -> tuple[Table, Table]:
    """Of weights (layers, choices) and of what is read (tensors, choices); nothing is lost in float, the last choice if it is
    one.
    """
    models, readers = list(candidates.weights.values()), list(candidates.activations.values())
    read, chosen = np.zeros((0, 0)), bool(wanted.activations)
    match kind:
        case "noise":
            weights = noise_table(models, batches)
            read = noise_table(readers, batches, read=True) if chosen else read
        case "metric":
            weights = metric_table(models, task)
            read = metric_table(readers, task, read=True) if chosen else read
        case "hessian":
            traces = hessian_traces(models[0], batches, read=chosen)
            weights = hessian_table(models, traces)
            read = hessian_table_of_tensors(readers, traces, batches) if chosen else read
    return _with_float(weights, wanted.choices), _with_float(read, wanted.activations)


def _with_float(table: Table, choices: Sequence[int]) -> Table:
    padded: Table = np.pad(table, ((0, 0), (0, int(FLOAT in choices))))
    return padded


@torch.no_grad()
def _take_(model: QuantizedModel, candidates: Candidates, widths: Sequence[BitWidths]) -> None:
    """Each weight, and what each layer reads, gets the grid that it has in the candidate of its bits; what layers in float alone
    read gets none.
    """
    layers = list(zip(layers_of(model), widths, strict=True))
    for key in {key_before(layer.node) for layer, _ in layers} - {""}:
        model.quantizer(key).enabled = False
    for layer, width in layers:
        on_grid, integer = not width.is_float, FLOAT not in (width.weight_bits, width.activation_bits)
        if f"{layer.key}:bias" in model.quantizers:
            model.quantizer(f"{layer.key}:bias").enabled = integer
        layer.quantizer(model).enabled = on_grid
        if on_grid:
            layer.quantizer(model).take_(layer.quantizer(candidates.weights[width.weight_bits]))
        if integer and key_before(layer.node):
            read = model.quantizer(key_before(layer.node))
            read.enabled = True
            read.take_(candidates.activations[width.activation_bits].quantizer(key_before(layer.node)))
    set_bias_scales_(model)


def _evidence(
    probe: QuantizedModel, facts: Sequence[Facts], wanted: MixedBits, posed: _Posed, latencies: LatencyTable | None
) -> tuple[BitsSensitivity, ...]:
    """Per layer: what each width loses, and what the model takes more with the layer in float, where that was measured."""
    keys = tensors_of(probe)

    def more(f: Facts) -> float | None:
        return None if latencies is None or f.path not in latencies.entries else latencies.at(f.path, FLOAT) - latencies.base_ms

    def of(row: Sequence[float], bits: Sequence[int]) -> tuple[WidthLoss, ...]:
        return tuple(WidthLoss(width, float(loss)) for width, loss in zip(bits, row, strict=True))

    weights, tensors = posed.losses
    read = [tensors[keys.index(key_before(layer.node))] if len(tensors) else () for layer in layers_of(probe)]
    return tuple(
        BitsSensitivity(posed.kind, of(own, wanted.choices), of(also, wanted.activations), more(f))
        for f, own, also in zip(facts, weights, read, strict=True)
    )


def _scheme(probe: QuantizedModel, bits: Sequence[BitWidths], *, read: bool) -> Scheme:
    """read: whether the bits of what is read were chosen too."""
    before = probe.scheme

    def of(path: str, chosen: BitWidths) -> BitWidths:
        if chosen.is_float:
            return chosen
        own = before.of(path)
        return dataclasses.replace(
            own, weight_bits=chosen.weight_bits, activation_bits=chosen.activation_bits if read else own.activation_bits
        )

    named = {layer.path: of(layer.path, chosen) for layer, chosen in zip(layers_of(probe), bits, strict=True)}
    return Scheme(before.default, {**before.layers, **named}, before.embeddings)
