"""The user's model, data, loss and metric, checked against one another once, where they are brought together."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import BatchError, MetricError, NotFiniteError, NotTrainableError, TaskError
from paredown.task.batches import Batches, Inputs, batch_size, call, check_finite, device_of, each, evaluating, joined, tensors
from paredown.task.metric import Kind, Metric, top1


@dataclass(frozen=True, eq=False)
class Task:
    """model: trained; the baseline, and the default teacher. Never modified. If compiled or DataParallel, the one within.
    example_inputs: a tuple or a dict of tensors; at least 2 samples, batch on dimension 0.
    train: re-iterable of (inputs, target); target may be None where only distillation reads it.
    validation: every choice is made on it. test: optional, read once, for the report.
    loss: (output, target) -> scalar tensor. metric: a Metric, or a function that is per sample and higher better.
    dynamic: further dynamic dimensions, {input name: {dimension: name}}; the batch is always dynamic.
    protect: names of modules that no step may touch.
    train_step: the user's own (model, batch) -> loss, used by every step that trains.
    recover: the user's own (model) -> model, called instead of any training; opaque.

    Raises TaskError, or one of its kinds, where these don't fit each other.
    """

    model: nn.Module
    example_inputs: tuple[Any, ...] | dict[str, Any]
    train: Batches
    validation: Batches
    test: Batches | None = None
    loss: Callable[[Any, Any], Tensor] = torch.nn.functional.cross_entropy
    metric: Metric | Callable[[Any, Any], Any] = top1
    dynamic: dict[str, dict[int, str]] | None = None
    protect: tuple[str, ...] = ()
    train_step: Callable[[nn.Module, Any], Tensor] | None = None
    recover: Callable[[nn.Module], nn.Module] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", unwrapped(self.model))
        object.__setattr__(self, "metric", Metric.of(self.metric))
        object.__setattr__(self, "name", self.name or type(self.model).__name__)
        _check_model(self)
        for split in ("train", "validation", "test"):
            if getattr(self, split) is not None:
                _check_first_batch(self, split)

    @property
    def scorer(self) -> Metric:
        """The metric, as a Metric."""
        assert isinstance(self.metric, Metric)  # __post_init__ made it one
        return self.metric

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def inputs(self) -> Inputs:
        """The example inputs, on the model's device, as `call` takes them."""
        move = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in _named(self.example_inputs)}
        return move if isinstance(self.example_inputs, dict) else tuple(move.values())

    def protecting(self, names: Iterable[str]) -> tuple[str, ...]:
        """These modules, and what the task protects, each once."""
        return tuple(dict.fromkeys((*names, *self.protect)))

    def require_trainable(self, model: nn.Module | None = None) -> None:
        """Raises NotTrainableError where no parameter of the model requires a gradient, or none can be taken."""
        if torch.is_inference_mode_enabled():
            raise NotTrainableError(
                "a step that trains needs gradients", got="torch.inference_mode()", remedy="call it outside of inference mode"
            )
        if not any(p.requires_grad for p in (model or self.model).parameters()):
            raise NotTrainableError(
                "a step that trains needs parameters that require a gradient",
                got="none",
                remedy="call model.requires_grad_(True)",
            )


def require_task(value: object) -> None:
    """Raises TaskError where a step was given something else, such as the model itself."""
    if not isinstance(value, Task):
        raise TaskError("task must be a paredown.Task", got=type(value).__name__, remedy="write paredown.Task(model=model, ...)")


def _named(example: Any) -> list[tuple[Any, Any]]:
    return list(example.items()) if isinstance(example, dict) else list(enumerate(example))


def unwrapped(model: Any) -> Any:
    """The module within `torch.compile`, DataParallel and DistributedDataParallel: its names and class are the user's own."""
    while isinstance(model, nn.Module):
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = model.module if parallel else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def _check_model(task: Task) -> None:
    """The model is a module with weights, the example inputs are a nest of tensors that it takes, and its output is finite."""
    if not isinstance(task.model, nn.Module):
        raise TaskError(
            "model must be a torch.nn.Module",
            got=type(task.model).__name__,
            remedy="pass the module itself, not its class or its file",
        )
    if isinstance(task.model, torch.jit.ScriptModule):
        raise TaskError(
            "model must be a module whose code Python runs", got="a ScriptModule", remedy="pass the module that it was made from"
        )
    if task.device.type == "meta":
        raise TaskError(
            "model must hold its weights", got="a model on the meta device", remedy="load them before the task is made"
        )
    _check_example(task.example_inputs)
    _check_names(task)
    check_finite(task.example_inputs, "example_inputs")
    check_finite(_run(task, task.inputs, "example_inputs"), "the model's output")


def _check_example(example: Any) -> None:
    """A tuple or a dict of tensors with at least 2 samples, all with the batch on dimension 0 (or without any)."""
    found = tensors(example)
    if not isinstance(example, tuple | dict) or not found:
        raise TaskError(
            "example_inputs must be a tuple or a dict of tensors",
            got=type(example).__name__,
            remedy="write example_inputs=(x,)",
        )
    samples = len(found[0]) if found[0].dim() else 0
    if samples < 2:
        raise TaskError(
            "example_inputs must hold at least 2 samples (one would fix the batch size)",
            got=samples,
            remedy="stack two samples",
        )
    if any(len(tensor) != samples for tensor in found if tensor.dim()):
        raise BatchError(
            "example_inputs must all have the batch on dimension 0",
            got=", ".join(str(tuple(tensor.shape)) for tensor in found),
            remedy="transpose in forward, or keep what has no batch as a buffer of the model",
        )


def _check_names(task: Task) -> None:
    """What `protect` and `dynamic` name is there."""
    if isinstance(task.protect, str):
        raise TaskError("protect must be a tuple of module names", got=task.protect, remedy=f'write protect=("{task.protect}",)')
    known = {name for name, _ in task.model.named_modules()}
    unknown = [name for name in task.protect if name not in known]
    if unknown:
        raise TaskError(
            "protect must name modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
    if task.dynamic is not None:
        _check_dynamic(task.dynamic, _argument_names(task), task.example_inputs)


def _argument_names(task: Task) -> list[Any]:
    """What the example inputs are called: by the dict's keys, or by the arguments of forward."""
    if isinstance(task.example_inputs, dict):
        return list(task.example_inputs)
    try:
        return list(inspect.signature(task.model.forward).bind(*task.example_inputs).arguments)
    except (TypeError, ValueError) as error:
        raise BatchError(
            "example_inputs must fit the model", got=_brief(error), remedy="compare with what forward takes"
        ) from error


def _check_dynamic(dynamic: Any, names: list[Any], example: Any) -> None:
    """{name of an input: {dimension: name}}; a name that isn't one would silently leave its dimension fixed."""
    if not isinstance(dynamic, dict) or not all(_names_dimensions(dims) for dims in dynamic.values()):
        raise TaskError(
            "dynamic must be {input: {dimension: name}}",
            got=repr(dynamic),
            remedy=f'write dynamic={{"{names[0]}": {{1: "length"}}}}',
        )
    unknown = [name for name in dynamic if name not in names]
    if unknown:
        raise TaskError(
            "dynamic must name inputs of the model", got=unknown[0], remedy=f"its inputs are {', '.join(map(str, names))}"
        )
    given = dict(zip(names, example.values() if isinstance(example, dict) else example, strict=False))
    for name, dims in dynamic.items():
        most = given[name].dim() - 1 if isinstance(given[name], Tensor) else max(dims, default=0)
        if not all(0 <= dimension <= most for dimension in dims):
            raise TaskError(f"dynamic dimensions of {name} must be in [0, {most}]", got=max(dims), remedy="count them from 0")


def _names_dimensions(dims: Any) -> bool:
    return isinstance(dims, dict) and all(type(d) is int and isinstance(name, str) for d, name in dims.items())


def _check_first_batch(task: Task, split: str) -> None:
    """The first batch of a split fits the model, and loss and metric take what comes out."""
    inputs, target = next(each(getattr(task, split), split, task.device))
    output = _run(task, inputs, split)
    check_finite(output, f"the model's output on {split}")
    if target is None:
        if split != "train":
            raise BatchError(f"{split} needs targets for the metric", got="target None", remedy="only train may go without")
        return
    if split == "train":
        if task.train_step is None:
            _check_loss(task, output, target)
        return
    with torch.no_grad():
        if task.scorer.kind is Kind.PER_SAMPLE:
            _scored(task, lambda: task.scorer.per_sample(output, target, batch_size(inputs)))
        else:
            _check_corpus(task, split, output, target)


def _check_corpus(task: Task, split: str, output: Any, target: Any) -> None:
    """A corpus metric takes the first batch; or the whole split, where that is too little for it (it lacks a class, say)."""
    try:
        _scored(task, lambda: task.scorer.corpus(output, target))
    except MetricError:
        pairs = [(_run(task, inputs, split), own) for inputs, own in each(getattr(task, split), split, task.device)]
        outputs, targets = zip(*pairs, strict=True)
        _scored(task, lambda: task.scorer.corpus(joined(outputs), joined(targets)))


def _scored(task: Task, score: Callable[[], Any]) -> None:
    try:
        score()
    except TaskError:
        raise
    except Exception as error:
        raise MetricError(
            f"metric {task.scorer} must take (output, target) as the model and the data give them", got=_brief(error),
            remedy="call it on model(inputs) and a target to see",
        ) from error  # fmt: skip


def _check_loss(task: Task, output: Any, target: Any) -> None:
    try:
        with torch.no_grad():
            value = task.loss(output, target)
    except Exception as error:
        raise TaskError(
            "loss must take (output, target) as the model and the data give them", got=_brief(error),
            remedy="call it on model(inputs) and a target to see",
        ) from error  # fmt: skip
    if not isinstance(value, Tensor) or value.dim() != 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TaskError("loss must return a scalar tensor", got=shape, remedy="take its mean over the batch")
    if not bool(torch.isfinite(value)):
        raise NotFiniteError(
            "the loss on train must be finite", got=float(value), remedy="look for log(0), or labels out of range"
        )


def _run(task: Task, inputs: Inputs, what: str) -> Any:
    try:
        with torch.no_grad(), warnings.catch_warnings(), evaluating(task.model):
            return call(task.model, inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(inputs))
        raise BatchError(
            f"{what} must fit the model", got=f"{shapes} ({_brief(error)})", remedy="compare with what forward takes"
        ) from error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
