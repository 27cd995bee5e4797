"""Gradients over calibration batches, and the Taylor scores that they give."""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from paredown.core.errors import NotFiniteError
from paredown.graph.groups import Groups
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut
from paredown.pruning.importance.taylor import taylor
from paredown.pruning.select import Scores
from paredown.task.batches import Batch, call, each, tensors
from paredown.task.task import Task

BATCHES = 10


def taylor_scores(model: nn.Module, task: Task, groups: Groups, *, batches: int = BATCHES, seed: int = 0) -> list[Scores]:
    """One array (size,) per group, of mean square 1: root mean square over batches of the first-order change of the loss.

    batches: of task.train, at most. The model runs in evaluation mode and is not touched.
    Raises NotTrainableError where nothing requires a gradient, NotFiniteError where a gradient isn't finite.
    """
    task.require_trainable(model)
    copy = cut(model, Manifest()).eval()
    weights = {name: p.detach() for name, p in copy.named_parameters()}
    total = [np.zeros(group.size) for group in groups.groups]
    for gradients in _gradients(copy, task, batches, seed):
        for g, group in enumerate(groups.groups):
            total[g] += taylor(group, weights, gradients).square().numpy()
    return [np.sqrt(s / max(s.mean(), 1e-60)) for s in total]


def _gradients(model: nn.Module, task: Task, batches: int, seed: int) -> Iterator[Mapping[str, Tensor]]:
    """For each batch the gradient of every parameter that the loss depends on, frozen ones included."""
    parameters = {name: p.requires_grad_(True) for name, p in model.named_parameters() if p.is_floating_point()}
    generator = torch.Generator().manual_seed(seed)
    for batch in itertools.islice(each(task.train, "train", task.device), batches):
        with torch.enable_grad():
            loss = _loss(model, task, batch, generator)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(parameters, found, strict=True) if g is not None}
        if not all(bool(torch.isfinite(g).all()) for g in gradients.values()):
            raise NotFiniteError(
                "gradients of the loss must be finite", got="NaN or infinity", remedy="look for log(0) or sqrt(0) in the loss"
            )
        yield gradients


def _loss(model: nn.Module, task: Task, batch: Batch, generator: torch.Generator) -> Tensor:
    """The user's own training step, or the task's loss; without a target, how far the output moves."""
    inputs, target = batch
    if task.train_step is not None:
        return task.train_step(model, batch)
    output = call(model, inputs)
    return _projection(output, generator) if target is None else task.loss(output, target)


def _projection(output: object, generator: torch.Generator) -> Tensor:
    """The output along a random direction: the mean square of its change is the squared change of the output, no label needed."""
    parts = [t for t in tensors(output) if t.is_floating_point()]
    return torch.stack([(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in parts]).sum()
