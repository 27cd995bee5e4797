"""The user's model, data, loss and metric, checked against one another once, where they are brought together."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import BatchError, MetricError, NotFiniteError, NotTrainableError, TaskError
from paredown.task.batches import Batches, Inputs, batch_size, call, check_finite, device_of, each, evaluating, tensors
from paredown.task.metric import Kind, Metric, top1


@dataclass(frozen=True, eq=False)
class Task:
    """model: trained; the baseline, and the default teacher. Never modified.
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
        """Raises NotTrainableError where no parameter of the model requires a gradient."""
        if not any(p.requires_grad for p in (model or self.model).parameters()):
            raise NotTrainableError(
                "a step that trains needs parameters that require a gradient",
                got="none",
                remedy="call model.requires_grad_(True)",
            )


def _named(example: Any) -> list[tuple[Any, Any]]:
    return list(example.items()) if isinstance(example, dict) else list(enumerate(example))


def _check_model(task: Task) -> None:
    """The model is a module, the example inputs are a nest of tensors that it takes, and its output is finite."""
    if not isinstance(task.model, nn.Module):
        raise TaskError(
            "model must be a torch.nn.Module",
            got=type(task.model).__name__,
            remedy="pass the module itself, not its class or its file",
        )
    if not isinstance(task.example_inputs, tuple | dict) or not tensors(task.example_inputs):
        raise TaskError(
            "example_inputs must be a tuple or a dict of tensors",
            got=type(task.example_inputs).__name__,
            remedy="write example_inputs=(x,)",
        )
    first = tensors(task.example_inputs)[0]
    samples = len(first) if first.dim() else 0
    if samples < 2:
        raise TaskError(
            "example_inputs must hold at least 2 samples (one would fix the batch size)",
            got=samples,
            remedy="stack two samples",
        )
    if isinstance(task.protect, str):
        raise TaskError("protect must be a tuple of module names", got=task.protect, remedy=f'write protect=("{task.protect}",)')
    known = {name for name, _ in task.model.named_modules()}
    unknown = [name for name in task.protect if name not in known]
    if unknown:
        raise TaskError(
            "protect must name modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
    check_finite(task.example_inputs, "example_inputs")
    check_finite(_run(task, task.inputs, "example_inputs"), "the model's output")


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
            _scored(task, lambda: task.scorer.corpus(output, target))


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
