"""The distillation that a task's outputs and targets allow, for what the user didn't write."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.core.knowledge import Soft
from paredown.core.steps import Distill
from paredown.distillation.lineage import lineage
from paredown.distillation.losses.shapes import classes_at, has_classes
from paredown.distillation.pairing import see, stage_ends
from paredown.distillation.teacher import floating
from paredown.task.batches import call, device_of, each, evaluating, tensors
from paredown.task.targets import are_shares
from paredown.task.task import Task
from paredown.train.seeds import seeded

_PLACES = 4  # where hidden layers are compared, at most


def suited(task: Task) -> Distill:
    """Labels aren't asked for where the training data have none; the teacher isn't where no output is a number."""
    outputs, target = _first(task, task.model)
    if not outputs:
        return Distill(hard_weight=1)
    unlabelled = target is None and task.train_step is None
    return Distill(hard_weight=0 if unlabelled else Distill().hard_weight)


def recovering(task: Task) -> Distill:
    """What recovers a cut of the task's model: outputs and hidden layers together where it is a convnet, else `suited`."""
    plain = suited(task)
    if task.recover is not None or plain.hard_weight == 1 or not _is_convnet(task):
        return plain
    return dataclasses.replace(Distill.combined(), hard_weight=plain.hard_weight)


def _is_convnet(task: Task) -> bool:
    """Whether hidden layers (batch, channels, *space) can be compared by lineage at more than one place."""
    try:
        layers = {pair.student for pair in lineage(task.model, task.model)}
        ends = stage_ends(see(task.model, task.inputs, grams=False, names=layers), _PLACES)
    except TaskError:
        return False
    return len(ends) > 1 and all(each.space and each.axis == 1 for each in ends)


def settled(config: Distill, task: Task, student: nn.Module) -> Distill:
    """The step with what its `soft="auto"` stands for: soft labels where all outputs are logits of classes; "regression" where
    one isn't, or the targets are numbers themselves.
    """
    return dataclasses.replace(config, soft=_soft(*_first(task, student))) if config.soft == "auto" else config


def _first(task: Task, model: nn.Module) -> tuple[list[Tensor], Any]:
    """What a model gives for the first training batch, as far as it is floating-point numbers, and that batch's target."""
    with seeded(0), torch.no_grad(), evaluating(model):
        inputs, target = next(each(task.train, "train", device_of(model)))
        return floating(call(model, inputs)), target


def _soft(outputs: Sequence[Tensor], target: Any) -> Soft:
    """A target of numbers has an output's shape: floats of another are weights of samples, masks, boxes."""
    shapes = {output.shape for output in outputs}
    targets = [t for t in tensors(target) if t.is_floating_point() and t.shape in shapes]
    numbers = any(not (has_classes(t) and t.numel() and are_shares(t, classes_at(t))) for t in targets) or not all(
        map(has_classes, outputs)
    )
    return "regression" if numbers else "soft_labels"
