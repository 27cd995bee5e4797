"""Gradients of a task's objective over calibration batches, in the forms that the criteria ask for.

The objective is the loss, or the *output* along a random direction: no label is needed, and how far the output moves is what
distillation has to recover. On data that the model was trained on the loss is near its minimum, and its gradient rests on
the few samples that are still wrong.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import BatchError, NotFiniteError, TaskError
from paredown.graph.groups import Group
from paredown.pruning.importance.taylor import gate_gradient
from paredown.pruning.importance.taylor_second import perturbation
from paredown.task.batches import Batch, batch_size, call, fitting, rows_of, tensors
from paredown.task.task import Task

Objective = Callable[[nn.Module, Batch], Tensor]
Gradients = Mapping[str, Tensor]


def output_change(task: Task, seed: int) -> Objective:
    """The output along a random direction, whose squared change is the output's on average; a user's own step instead."""
    generator = torch.Generator().manual_seed(seed)

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        if task.train_step is not None:
            return task.train_step(model, batch)
        parts = [t for t in tensors(call(model, batch[0])) if t.is_floating_point()]
        if not parts:
            raise TaskError(
                "an importance by the output's change needs an output of floating-point numbers",
                got="none",
                remedy='return logits, or write importance="magnitude"',
            )
        return torch.stack([_projection(t, generator) for t in parts]).sum()

    return objective


def task_loss(task: Task, importance: str, instead: str = 'importance="taylor"') -> Objective:
    """The task's loss, or the user's own step. importance: who asks, named by the BatchError where targets are missing; instead:
    what doesn't need them.
    """

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        if task.train_step is not None:
            return task.train_step(model, batch)
        if batch[1] is None:
            raise BatchError(
                f"{importance} takes the gradient of the loss and needs targets",
                got="target None",
                remedy=f"write {instead}, or give the training batches targets",
            )
        return task.loss(call(model, batch[0]), batch[1])

    return objective


def each_gradient(model: nn.Module, batches: Iterable[Batch], objective: Objective) -> Iterator[Gradients]:
    """For each batch the gradient of every parameter that the objective depends on, frozen ones included.

    Raises NotFiniteError where one isn't finite.
    """
    parameters = _parameters(model)
    for batch in batches:
        with torch.enable_grad(), fitting("the data", *batch):
            found = torch.autograd.grad(objective(model, batch), list(parameters.values()), allow_unused=True)
        yield _checked(dict(zip(parameters, found, strict=True)))


def gate_gradients(model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], objective: Objective) -> list[Tensor]:
    """For each group (batches, size) float64: the derivative by the gate of each atom."""
    weights = detached(model)
    rows = [
        [gate_gradient(group, weights, gradients) for group in groups] for gradients in each_gradient(model, batches, objective)
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@dataclass(frozen=True, eq=False)
class Curvature:
    """Of one group, each (batches, size): the first derivative by the gates, and Hutchinson's term of the second."""

    gates: Tensor
    second: Tensor


def curvatures(
    model: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], objective: Objective, generator: torch.Generator
) -> list[Curvature]:
    """One random vector of signs a batch. Attention takes the plain kernel, the only one that can be derived twice."""
    parameters, weights = _parameters(model), detached(model)
    first: list[list[Tensor]] = []
    second: list[list[Tensor]] = []
    for batch in batches:
        signs = [torch.randint(0, 2, (group.size,), generator=generator).double() * 2 - 1 for group in groups]
        moved = perturbation(groups, signs, weights)
        with torch.enable_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            with fitting("the data", *batch):
                value = objective(model, batch)
            found = torch.autograd.grad(value, list(parameters.values()), create_graph=True, allow_unused=True)
            gradients = _dense(dict(zip(parameters, found, strict=True)))
            along = torch.stack([(gradients[name] * u).sum() for name, u in moved.items() if name in gradients]).sum()
            product = torch.autograd.grad(along, list(parameters.values()), allow_unused=True)
        turned = _checked(dict(zip(parameters, product, strict=True)))
        flat = _checked({name: g.detach() for name, g in gradients.items()})
        first.append([gate_gradient(group, weights, flat) for group in groups])
        second.append([sign * gate_gradient(group, weights, turned) for sign, group in zip(signs, groups, strict=True)])
    pairs = zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    return [Curvature(torch.stack(a), torch.stack(b)) for a, b in pairs]


def weight_means(
    model: nn.Module, batches: Iterable[Batch], objective: Objective, of: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """By name of the parameter the mean over batches of `of(gradient)`, elementwise; of a parameter without gradient none."""
    totals: dict[str, Tensor] = {}
    count = 0
    for gradients in each_gradient(model, batches, objective):
        count += 1
        for name, value in gradients.items():
            totals[name] = totals[name] + of(value) if name in totals else of(value)
    return {name: total / count for name, total in totals.items()}


def pieces(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The batches in pieces of at most `size` samples; whole where a target isn't made of tensors with a row for each sample."""
    for inputs, target in batches:
        samples = batch_size(inputs)
        if not _has_rows(target, samples):
            yield inputs, target
            continue
        for start in range(0, samples, size):
            rows = slice(start, start + size)
            yield rows_of(inputs, samples, rows), rows_of(target, samples, rows)


def in_pieces(task: Task, batches: Iterable[Batch], size: int) -> Iterable[Batch]:
    """The same; whole where the user's own step may tie the samples of a batch to one another."""
    return batches if task.train_step is not None else pieces(batches, size)


def detached(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, without history."""
    return {name: p.detach() for name, p in model.named_parameters()}


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.requires_grad_(True) for name, p in model.named_parameters() if p.is_floating_point()}


def _dense(found: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Those that there are; of nn.Embedding(sparse=True) they come sparse."""
    return {name: g.to_dense() if g.is_sparse else g for name, g in found.items() if g is not None}


def _checked(found: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    gradients = _dense(found)
    if not all(bool(torch.isfinite(g).all()) for g in gradients.values()):
        raise NotFiniteError(
            "gradients must be finite", got="NaN or infinity", remedy="look for log(0) or sqrt(0) in the model or the loss"
        )
    return gradients


def _projection(output: Tensor, generator: torch.Generator) -> Tensor:
    """Each output of a model in units of its own size, so that none drowns the others."""
    direction = torch.randn(output.shape, generator=generator).to(output)
    return (output * direction).sum() / output.detach().square().mean().sqrt().clamp_min(1e-12)


def _has_rows(target: Any, samples: int) -> bool:
    found = tensors(target)
    return target is None or (bool(found) and all(t.dim() > 0 and t.shape[0] == samples for t in found))
