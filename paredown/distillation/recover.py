"""Recovery: a copy of a cut or quantized model trained against a teacher's soft labels, and the task's own loss.

    loss = (1 - hard_weight) soft + hard_weight hard

soft: `losses/soft_labels.py`, its mean over the floating-point tensors of the outputs. hard: the task's `loss`, or its
`train_step` where there is one, which then runs a forward pass of its own. hard_weight 0: targets are never read.
hard_weight 1: no teacher is asked, a plain fine-tuning; with a `train_step` that alone is used.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.core.progress import Progress, silent
from paredown.core.steps import Distill
from paredown.distillation.losses.soft_labels import blend, soft_label_loss
from paredown.distillation.reconstruct import reconstruct_
from paredown.distillation.teacher import Teacher
from paredown.task.batches import Batch, call, tensors
from paredown.task.task import Task
from paredown.train.batchnorm import recalibrate_
from paredown.train.loop import Loss, fit_
from paredown.train.schedule import length


def distill_model(
    model: nn.Module,
    task: Task,
    config: Distill,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """A trained copy of the model, in evaluation mode. Neither the model nor the teacher is touched.

    teacher: None: the task's own model. Where the task has a `recover`, that is called on the copy and nothing else is done
    but what `config.reconstruct` and `config.recalibrate` say.
    Raises NotTrainableError; TaskError where the outputs of teacher and student differ in shape, or a target is missing that
    the hard loss needs; TrainingDivergedError.
    """
    task.require_trainable(model)
    student = copy.deepcopy(model)
    original = task.model if teacher is None else teacher
    solved = reconstruct_(student, original, task.train, frozen=task.protect, seed=seed) if config.reconstruct else 0
    if config.recalibrate and not solved:
        recalibrate_(student, task.train, frozen=task.protect)
    if task.recover is not None:
        return _recovered(task.recover(student))
    loss = _loss(task, config, original)
    return fit_(
        student,
        task.train,
        loss,
        config.training,
        frozen=task.protect,
        seed=seed,
        progress=lambda _, fraction: progress("distill", fraction),
    )


def _loss(task: Task, config: Distill, model: nn.Module) -> Loss:
    if config.hard_weight == 1:
        return lambda student, batch: _hard(task, student, batch, None)
    teacher = Teacher(model, batches_per_pass=length(task.train))

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        output = call(student, batch[0])
        soft = _soft(output, teacher(batch[0]), config.temperature)
        if config.hard_weight == 0:
            return soft
        return blend(soft, _hard(task, student, batch, output), config.hard_weight)

    return loss


def _soft(output: Any, teacher: list[Tensor], temperature: float) -> Tensor:
    """The mean soft-label loss over the tensors that both give."""
    student = [tensor for tensor in tensors(output) if tensor.is_floating_point()]
    if len(student) != len(teacher) or not student:
        raise TaskError(
            "teacher and student must give the same outputs",
            got=f"{len(teacher)} and {len(student)} floating-point tensors",
            remedy="return the same outputs in training and in evaluation mode, or set hard_weight=1",
        )
    return torch.stack([soft_label_loss(s, t, temperature) for s, t in zip(student, teacher, strict=True)]).mean()


def _hard(task: Task, student: nn.Module, batch: Batch, output: Any) -> Tensor:
    """The task's own loss. output: the student's, where it has been computed already."""
    if task.train_step is not None:
        return task.train_step(student, batch)
    inputs, target = batch
    if target is None:
        raise TaskError(
            "the hard loss needs a target", got="target None in train", remedy="set hard_weight=0 to distill without labels"
        )
    return task.loss(call(student, inputs) if output is None else output, target)


def _recovered(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TaskError("recover must return a model", got=type(model).__name__, remedy="return the module that it was given")
    return model.eval()
