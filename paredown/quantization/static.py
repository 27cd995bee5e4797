"""Static quantization after training: trace, fold, place quantizers, calibrate them on a few training batches.

Weights: symmetric per output channel or per group; 8 bits and more from their extremes, fewer by least squares. Activations:
asymmetric unsigned per tensor, from what an observer saw in the float model. Scales are fixed from then on.
"""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from paredown.core.errors import NothingToQuantizeError, RecipeError, TraceError
from paredown.core.progress import Progress, silent
from paredown.core.steps import Quantize
from paredown.graph.manifest import manifest_of
from paredown.graph.trace import Dynamic, trace
from paredown.quantization.fold import fold_batch_norms_
from paredown.quantization.functional import drop_expansions_, functionalize_, split_silu_
from paredown.quantization.grid import Grid, power_above
from paredown.quantization.insert import insert_dropouts_, insert_dynamic_, insert_quantizers_
from paredown.quantization.model import ABOUT, FakeQuantizer, QuantizedModel
from paredown.quantization.nodes import argument, constant, get, quantizer_key
from paredown.quantization.observers import MinMax, Observer, observer_of
from paredown.quantization.placement import Placement, edges, key_before, place, rules_of
from paredown.quantization.refine import refine_
from paredown.quantization.scheme import Scheme, scheme_of
from paredown.quantization.weights import extreme_scales, fitted_scales
from paredown.task.batches import Inputs, apply_tensors, batch_size, call, check_finite, device_of, each, fitting
from paredown.task.task import Task
from paredown.train.masks import mark_sparse_, sparse_names

_BIAS_STEPS = 2.0**30  # half of what an int32 holds


def quantize_model(
    model: nn.Module, task: Task, config: Quantize, *, reduced: bool, scheme: Scheme | None = None, progress: Progress = silent
) -> QuantizedModel:
    """A calibrated simulation of `model`, which is left untouched. reduced: 8-bit weights on [-63, 63].

    scheme: the bits of each layer; None: 8 everywhere.

    Reads whole batches of task.train until config.samples samples were seen, and refines as config.refine says.
    What task.protect names stays in float too.
    Raises NothingToQuantizeError, RecipeError (unknown module in config.protect), TraceError, BatchError, NotFiniteError.
    """
    quantized = prepare_for(task, model, config, reduced=reduced, scheme=scheme)
    refine_(quantized, task, model, lambda: calibrate_(quantized, task, progress), progress)
    return quantized


def prepare_for(task: Task, model: nn.Module, config: Quantize, *, reduced: bool, scheme: Scheme | None = None) -> QuantizedModel:
    """`prepare` on a task's inputs; what the task protects is protected as what the config does."""
    config = dataclasses.replace(config, protect=task.protecting(config.protect))
    return prepare(model, task.inputs, config, reduced=reduced, dynamic=task.dynamic, scheme=scheme)


def prepare(
    model: nn.Module,
    inputs: Inputs,
    config: Quantize,
    *,
    reduced: bool,
    dynamic: Dynamic | None = None,
    scheme: Scheme | None = None,
) -> QuantizedModel:
    """The traced, folded model with its quantizers, not calibrated: their scales are NaN until a state_dict is loaded.

    scheme: None: what the config asks for. inputs: at least 2 samples.
    Raises what `quantize_model` raises, besides what comes from data.
    """
    rules = rules_of(config)
    _check(model, config, Scheme() if scheme is None else scheme)
    inputs = apply_tensors(inputs, lambda t: t.to(device_of(model)))
    owned = _owned(trace(model, inputs, dynamic).module(check_guards=False))
    functionalize_(owned.graph)
    drop_expansions_(owned.graph)
    if "sigmoid" in rules.lookups:
        split_silu_(owned.graph)
    fold_batch_norms_(owned)
    scheme = scheme_of(config, edges(owned, rules, config.protect)) if scheme is None else scheme
    two_sided = config.weights.two_sided or config.activations.two_sided
    placement = place(owned, rules, config.protect, scheme, float_biases=two_sided)
    _check_placement(placement, config)
    insert_quantizers_(owned, placement, scheme, config, reduced=reduced)
    if config.kind == "dynamic":
        insert_dynamic_(owned)
    insert_dropouts_(owned)
    owned.graph.eliminate_dead_code()
    owned.graph.lint()
    about: tuple[Any, ...] = (config, reduced, inputs, dynamic, manifest_of(model), type(model).__qualname__, scheme, {}, False)
    quantized = QuantizedModel(owned, owned.graph, dict(zip(ABOUT, about, strict=True))).eval()
    known = dict(quantized.named_parameters(remove_duplicate=False))
    return mark_sparse_(quantized, [name for name in sparse_names(model) if name in known])


def _owned(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph over copies of its parameters and buffers; tensors that were tied stay tied."""
    memo: dict[int, Any] = {}
    reads = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    return fx.GraphModule({path: copy.deepcopy(get(module, path), memo) for path in sorted(reads)}, module.graph)


def _check(model: nn.Module, config: Quantize, scheme: Scheme) -> None:
    known = {name for name, _ in model.named_modules()}
    strangers = [name for name in scheme.layers if name not in known]
    if strangers:
        raise RecipeError(
            "a scheme must name modules of the model", got=strangers[0], remedy="see model.named_modules() for the names"
        )
    unknown = [name for name in config.protect if name not in known]
    if unknown:
        raise RecipeError(
            "protect must name modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
    own = {*(n for n, _ in model.named_children()), *model._parameters, *model._buffers}
    taken = own & {*dir(QuantizedModel), *ABOUT, "quantizers", "dropouts", "meta", "shape_env"} - set(dir(nn.Module))
    if taken:
        raise TraceError(
            "a quantized model needs this name for itself", got=min(taken), remedy="rename that attribute of the model"
        )


def _check_placement(placement: Placement, config: Quantize) -> None:
    if not placement.weights:
        kinds = "linear or recurrent layers" if config.kind == "dynamic" else "convolutions or linear layers"
        remedy = "take names out of protect" if config.protect else f"quantize a model with {kinds}"
        raise NothingToQuantizeError("a model must have operators whose weights can go on a grid", got="none", remedy=remedy)


def calibrate_(quantized: QuantizedModel, task: Task, progress: Progress = silent) -> None:
    """Sets all scales: activations from the training batches, then weights. Where no activation is on a grid nothing is read.

    The config's observer sees activations of 8 bits and fewer; wider ones, of which no step is missed, get all of their range.
    """
    config = quantized.config
    observers = {key: _observer(quantized, key) for key in quantized.quantizers if not key.endswith((":weight", ":bias"))}
    seen = 0
    with torch.no_grad(), _observing(quantized, observers):
        for inputs, _ in each(task.train, "train", device_of(quantized)) if observers else ():
            with fitting("train", inputs):
                call(quantized, inputs)
            seen += batch_size(inputs)
            progress("calibrating", min(0.99, seen / config.samples) if config.samples else 0.0)
            if config.samples and seen >= config.samples:
                break
        for key, observer in observers.items():
            quantizer = quantized.quantizer(key)
            low, high = (torch.tensor([value], dtype=torch.float64) for value in observer.range())
            quantizer.between_(low, high)
        set_weight_scales_(quantized)
    progress("calibrating", 1.0)


def _observer(quantized: QuantizedModel, key: str) -> Observer:
    grid = quantized.quantizer(key).grid
    return MinMax() if grid.bits > 8 else observer_of(quantized.config, grid)


@contextmanager
def _observing(quantized: QuantizedModel, observers: dict[str, Observer]) -> Iterator[None]:
    """Within it nothing is quantized, and each observer sees its tensor once per call of the model."""
    waiting: set[str] = set()
    handles = [quantized.register_forward_pre_hook(lambda *_: waiting.update(observers))]

    def watch(key: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if key in waiting:  # a quantizer that is restated behind a padding is called again
                waiting.discard(key)
                check_finite(args[0], f"activations at {key}")
                observers[key] = observers[key].seen(args[0])

        return hook

    handles += [quantized.quantizer(key).register_forward_pre_hook(watch(key)) for key in observers]
    quantizers = [q for q in quantized.quantizers.values() if isinstance(q, FakeQuantizer)]
    try:
        for quantizer in quantizers:
            quantizer.enabled = False
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = True
        for handle in handles:
            handle.remove()


def set_weight_scales_(quantized: QuantizedModel) -> None:
    """Weights from the extremes of each channel, or fitted by least squares below 8 bits; biases in steps of s_x * s_w."""
    for key, weight in stored_weights(quantized):
        quantizer = quantized.quantizer(key)
        grid, find = quantizer.grid, extreme_scales if quantizer.grid.bits >= 7 else fitted_scales
        if grid.two_sided:  # what is above 0, and what is below, each as on a grid of its own
            above, zero_point = find(weight.detach().clamp(min=0), Grid(0, grid.high, True, grid.power_of_two))
            below, _ = find(-weight.detach().clamp(max=0), Grid(0, -grid.low, True, grid.power_of_two))
            quantizer.set_(above, zero_point, below)
        else:
            quantizer.set_(*find(weight, grid, quantizer.block))
    set_bias_scales_(quantized)


def stored_weights(quantized: QuantizedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights that stand behind a quantizer, each with its key. Raises NotFiniteError where one holds NaN or infinity."""
    for node in quantized.graph.nodes:
        if node.op == "call_module" and str(node.target).endswith(":weight"):
            weight = constant(quantized, node.args[0])
            assert weight is not None  # the placement takes constant weights only
            check_finite(weight, f"weights at {quantizer_key(node)}")
            yield quantizer_key(node), weight


def set_bias_scales_(quantized: QuantizedModel) -> None:
    """Gives each bias the scale s_x * s_w that runtimes hold it in. Where the channel's bias would overflow an int32 in such
    steps, the weight's own scale is made coarser first. A channel whose weights are all zero, as pruning and slimming leave them,
    has a range of nothing: its bias takes the finest steps of the other channels.
    """
    for node in quantized.graph.nodes:
        if node.op != "call_module" or not str(node.target).endswith(":bias"):
            continue
        reader, bias = next(iter(node.users)), constant(quantized, node.args[0])
        assert bias is not None  # likewise
        weight = quantized.quantizer(quantizer_key(argument(reader, 1)))
        step = quantized.quantizer(key_before(reader)).scale
        stored = constant(quantized, argument(argument(reader, 1), 0))
        own = weight.scale if stored is None else _without_empty(weight.scale, stored)
        scale = torch.maximum(own, (bias.detach().abs() / step / _BIAS_STEPS).float())
        scale = power_above(scale).float() if weight.grid.power_of_two else scale
        weight.set_(scale, weight.zero_point)
        quantized.quantizer(quantizer_key(node)).set_(scale * step, torch.zeros_like(weight.zero_point))


def _without_empty(scale: Tensor, weight: Tensor) -> Tensor:
    """(channels,): the scales of a weight; channels of zeros get the finest of the others, if there are others."""
    rows = weight.detach().flatten(1).abs().amax(1) if weight.dim() > 1 else weight.detach().abs()
    if rows.shape != scale.shape or not bool((rows > 0).any()):
        return scale
    return torch.where(rows > 0, scale, scale[rows > 0].min())
