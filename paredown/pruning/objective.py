"""What a model is judged by while it is pruned: the task's own loss, or how far its outputs are from the original's."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.core.errors import TaskError
from paredown.pruning.importance.gradients import Objective, task_loss
from paredown.pruning.scores import calibration
from paredown.task.batches import Batch, call, evaluating, tensors
from paredown.task.task import Task


def own_objective(task: Task, original: nn.Module) -> Objective:
    """The task's training step or loss; where a batch has no target, the distance to the output of `original`."""

    loss = task_loss(task, "an importance")

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        inputs, target = batch
        if task.train_step is None and target is None:
            return output_distance(call(model, inputs), inputs, original)
        return loss(model, batch)

    return objective


@torch.no_grad()
def mean_objective(model: nn.Module, task: Task, objective: Objective) -> float:
    """Over the first training batches, in evaluation mode."""
    with evaluating(model):
        return float(np.mean([float(objective(model, batch)) for batch in calibration(task)]))


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
