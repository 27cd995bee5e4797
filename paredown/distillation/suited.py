"""The distillation that a task's outputs and targets allow, for a recovery that the user didn't write."""

import torch

from paredown.core.steps import Distill
from paredown.distillation.losses.shapes import has_classes
from paredown.distillation.teacher import floating
from paredown.task.batches import call, each, evaluating, tensors
from paredown.task.task import Task
from paredown.train.seeds import seeded


def suited(task: Task) -> Distill:
    """Soft labels where all outputs are logits of classes; "regression" where one isn't, or the targets are numbers themselves.

    Labels aren't asked for where the training data have none; the teacher isn't where no output is a number.
    """
    with seeded(0), torch.no_grad(), evaluating(task.model):
        inputs, target = next(each(task.train, "train", task.device))
        outputs = floating(call(task.model, inputs))
    if not outputs:
        return Distill(hard_weight=1)
    numbers = any(tensor.is_floating_point() for tensor in tensors(target)) or not all(map(has_classes, outputs))
    unlabelled = target is None and task.train_step is None
    return Distill(soft="regression" if numbers else "soft_labels", hard_weight=0 if unlabelled else Distill().hard_weight)
