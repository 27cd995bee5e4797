"""What a model is judged by while it is pruned, where no objective is handed in: the task's own loss, or how outputs moved."""

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.core.errors import TaskError
from paredown.pruning.importance.gradients import Objective
from paredown.pruning.scores import BATCHES
from paredown.task.batches import Batch, call, device_of, each, evaluating, tensors
from paredown.task.task import Task


def own_objective(task: Task, original: nn.Module) -> Objective:
    """The task's training step or loss; where a batch has no target, the distance to the output of `original`."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        inputs, target = batch
        if task.train_step is not None:
            return task.train_step(model, batch)
        output = call(model, inputs)
        return task.loss(output, target) if target is not None else output_distance(output, inputs, original)

    return objective


@torch.no_grad()
def mean_objective(model: nn.Module, task: Task, objective: Objective) -> float:
    """Over the first training batches, in evaluation mode."""
    batches = itertools.islice(each(task.train, "train", device_of(model)), BATCHES)
    with evaluating(model):
        return float(np.mean([float(objective(model, batch)) for batch in batches]))


def output_distance(output: object, inputs: object, original: nn.Module) -> Tensor:
    """Mean square of the difference to the original's outputs, in units of their own mean square; 0 where none is a number."""
    with torch.no_grad(), evaluating(original):
        wanted = [t for t in tensors(call(original, inputs)) if t.is_floating_point()]  # type: ignore[arg-type]
    found = [t for t in tensors(output) if t.is_floating_point()]
    if len(wanted) != len(found):
        raise TaskError(
            "a model must give the same outputs in training and in evaluation mode",
            got=f"{len(found)} and {len(wanted)} floating-point tensors",
            remedy="give train targets, so that the task's loss is used",
        )
    parts = [F.mse_loss(f, w) / w.square().mean().clamp_min(1e-12) for f, w in zip(found, wanted, strict=True)]
    return torch.stack(parts).mean() if parts else torch.zeros(())
