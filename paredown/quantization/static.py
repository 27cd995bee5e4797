"""Static int8 after training: trace, fold, place quantizers, calibrate them on a few training batches.

Weights: symmetric per output channel, from their extremes; scales are fixed from then on. Activations: asymmetric uint8 per
tensor, from what an observer saw in the float model.
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
from paredown.core.recipe import Quantize
from paredown.graph.manifest import manifest_of
from paredown.graph.trace import Dynamic, trace
from paredown.quantization.fold import fold_batch_norms_
from paredown.quantization.functional import functionalize_
from paredown.quantization.grid import WEIGHTS, WEIGHTS_REDUCED, channel_range, scale_and_zero_point
from paredown.quantization.insert import insert_dropouts_, insert_quantizers_
from paredown.quantization.model import ABOUT, FakeQuantizer, QuantizedModel
from paredown.quantization.nodes import argument, constant, get
from paredown.quantization.observers import Observer, observer_of
from paredown.quantization.placement import RULES, Placement, place
from paredown.task.batches import Inputs, apply_tensors, batch_size, call, check_finite, device_of, each
from paredown.task.task import Task

_BIAS_STEPS = 2.0**30  # half of what an int32 holds


def quantize_model(
    model: nn.Module, task: Task, config: Quantize, *, reduced: bool, progress: Progress = silent
) -> QuantizedModel:
    """A calibrated int8 simulation of `model`, which is left untouched. reduced: weights on [-63, 63].

    Reads whole batches of task.train until config.samples samples were seen. What task.protect names stays in float too.
    Raises NothingToQuantizeError, RecipeError (unknown module in config.protect), TraceError, BatchError, NotFiniteError.
    """
    config = dataclasses.replace(config, protect=tuple(dict.fromkeys((*config.protect, *task.protect))))
    quantized = prepare(model, task.inputs, config, reduced=reduced, dynamic=task.dynamic)
    _calibrate_(quantized, task, progress)
    return quantized


def prepare(
    model: nn.Module, inputs: Inputs, config: Quantize, *, reduced: bool, dynamic: Dynamic | None = None
) -> QuantizedModel:
    """The traced, folded model with its quantizers, not calibrated: their scales are NaN until a state_dict is loaded.

    inputs: at least 2 samples. Raises what `quantize_model` raises, besides what comes from data.
    """
    _check(model, config)
    inputs = apply_tensors(inputs, lambda t: t.to(device_of(model)))
    owned = _owned(trace(model, inputs, dynamic).module(check_guards=False))
    functionalize_(owned.graph)
    fold_batch_norms_(owned)
    placement = place(owned, RULES[config.target], config.protect)
    _check_placement(placement, config)
    insert_quantizers_(owned, placement, WEIGHTS_REDUCED if reduced else WEIGHTS)
    insert_dropouts_(owned)
    owned.graph.eliminate_dead_code()
    owned.graph.lint()
    about = (config, reduced, inputs, dynamic, manifest_of(model), type(model).__qualname__)
    return QuantizedModel(owned, owned.graph, dict(zip(ABOUT, about, strict=True))).eval()


def _owned(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph over copies of its parameters and buffers; tensors that were tied stay tied."""
    memo: dict[int, Any] = {}
    reads = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    return fx.GraphModule({path: copy.deepcopy(get(module, path), memo) for path in sorted(reads)}, module.graph)


def _check(model: nn.Module, config: Quantize) -> None:
    known = {name for name, _ in model.named_modules()}
    unknown = [name for name in config.protect if name not in known]
    if unknown:
        raise RecipeError(
            "protect must name modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
    if config.target not in RULES:
        names = ", ".join(name for name in RULES if name)
        raise RecipeError(f"target must be one of {names}", got=config.target, remedy="leave it out for a portable file")
    own = {*(n for n, _ in model.named_children()), *model._parameters, *model._buffers}
    taken = own & {*dir(QuantizedModel), *ABOUT, "quantizers", "dropouts", "meta", "shape_env"} - set(dir(nn.Module))
    if taken:
        raise TraceError(
            "a quantized model needs this name for itself", got=min(taken), remedy="rename that attribute of the model"
        )


def _check_placement(placement: Placement, config: Quantize) -> None:
    if not placement.weights:
        remedy = "take names out of protect" if config.protect else "quantize a model with convolutions or linear layers"
        raise NothingToQuantizeError("a model must have operators that run in int8", got="none", remedy=remedy)


def _calibrate_(quantized: QuantizedModel, task: Task, progress: Progress) -> None:
    """Sets all scales: activations from the training batches, then weights."""
    config = quantized.config
    observers = {key: observer_of(config) for key in quantized.quantizers if not key.endswith((":weight", ":bias"))}
    seen = 0
    with torch.no_grad(), _observing(quantized, observers):
        for inputs, _ in each(task.train, "train", device_of(quantized)):
            call(quantized, inputs)
            seen += batch_size(inputs)
            progress("calibrating", min(1.0, seen / config.samples) if config.samples else 0.0)
            if config.samples and seen >= config.samples:
                break
        for key, observer in observers.items():
            quantizer = quantized.quantizer(key)
            low, high = (torch.tensor([value], dtype=torch.float64) for value in observer.range())
            quantizer.set_(*scale_and_zero_point(low, high, quantizer.grid))
        _set_weight_scales_(quantized)
    progress("calibrating", 1.0)


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


def _set_weight_scales_(quantized: QuantizedModel) -> None:
    """Weights from the extremes of each channel; never so fine that the channel's bias overflows an int32 in steps of
    s_x * s_w, which is the scale of the bias.
    """
    for node in quantized.graph.nodes:
        if node.op != "call_module" or not str(node.target).endswith(":weight"):
            continue
        quantizer, reader = quantized.quantizer(_key(node)), next(iter(node.users))
        weight, bias_node = constant(quantized, node.args[0]), argument(reader, 2)
        assert weight is not None  # the placement takes constant weights only
        scale, zero_point = scale_and_zero_point(*channel_range(weight), quantizer.grid)
        if isinstance(bias_node, fx.Node) and bias_node.op == "call_module":
            bias, step = constant(quantized, bias_node.args[0]), quantized.quantizer(_quantizer_before(reader)).scale
            assert bias is not None  # likewise
            scale = torch.maximum(scale, (bias.detach().abs() / step / _BIAS_STEPS).float())
            quantized.quantizer(_key(bias_node)).set_(scale * step, zero_point)
        quantizer.set_(scale, zero_point)


def _quantizer_before(node: fx.Node) -> str:
    """The key of the quantizer that an operator's input comes from, through moves."""
    current = node.args[0]
    while isinstance(current, fx.Node) and not str(current.target).startswith("quantizers."):
        current = current.args[0]
    assert isinstance(current, fx.Node)  # every int8 operator reads a quantized tensor
    return _key(current)


def _key(node: fx.Node) -> str:
    return str(node.target).removeprefix("quantizers.")
