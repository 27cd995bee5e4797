"""What the outputs of student and teacher are compared by, and the task's own loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.core.knowledge import DKD, BoundedRegression, OfOutput, Soft
from paredown.distillation.losses.contrastive import contrastive_loss
from paredown.distillation.losses.dkd import dkd_loss
from paredown.distillation.losses.embedding import embedding_loss
from paredown.distillation.losses.logit_mse import logit_mse_loss
from paredown.distillation.losses.multi_label import multi_label_loss
from paredown.distillation.losses.regression import bounded_regression_loss, regression_loss
from paredown.distillation.losses.soft_labels import soft_label_loss
from paredown.distillation.losses.standardized import standardized_loss
from paredown.distillation.teacher import floating
from paredown.task.batches import Batch, call, fitting
from paredown.task.task import Task


def soft_loss(
    kind: Soft | OfOutput,
    output: Any,
    teacher: Sequence[Tensor],
    target: Any,
    temperature: float,
    variances: Sequence[Tensor] | None = None,
) -> Tensor:
    """The mean over the floating-point tensors that both give. target: read by "dkd" and BoundedRegression; of others it tells
    where classes lie, where there is one. variances: of the teacher's outputs over many samples, for "regression".

    Raises TaskError where the outputs differ in number or shape, or the target is missing that is read.
    """
    student = floating(output)
    if len(student) != len(teacher) or not student:
        raise TaskError(
            "teacher and student must give the same outputs",
            got=f"{len(teacher)} and {len(student)} floating-point tensors",
            remedy="return the same outputs in training and in evaluation mode, or set hard_weight=1",
        )
    spreads: Sequence[Tensor | None] = variances or [None] * len(teacher)
    losses = [_soft(kind, s, t, target, temperature, v) for s, t, v in zip(student, teacher, spreads, strict=True)]
    return torch.stack(losses).mean()


def _soft(  # noqa: PLR0911 (one a kind)
    kind: Soft | OfOutput, student: Tensor, teacher: Tensor, target: Any, temperature: float, variance: Tensor | None
) -> Tensor:
    if _classes_first(student, target) and student.shape == teacher.shape:
        student, teacher = student.transpose(1, 2), teacher.transpose(1, 2)
    match kind:
        case "soft_labels":
            return soft_label_loss(student, teacher, temperature)
        case "standardized":
            return standardized_loss(student, teacher, temperature)
        case "logit_mse":
            return logit_mse_loss(student, teacher)
        case "multi_label":
            return multi_label_loss(student, teacher, temperature)
        case "regression":
            return regression_loss(student, teacher, variance)
        case "embedding":
            return embedding_loss(student, teacher)
        case "contrastive":
            return contrastive_loss(student, teacher)
        case "dkd" | DKD():
            config = DKD() if kind == "dkd" else kind
            known = _required("dkd", target, "soft_labels")
            return dkd_loss(student, teacher, known, temperature=temperature, alpha=config.alpha, beta=config.beta)
        case BoundedRegression():
            return bounded_regression_loss(student, teacher, _required("bounded_regression", target, "regression"), kind.margin)
        case "auto":
            raise AssertionError("settled before the training begins")


def _required(kind: str, target: Any, without: str) -> Tensor:
    if not isinstance(target, Tensor):
        raise TaskError(
            f"{kind} needs a target", got=f"target {target} in train", remedy=f'write soft="{without}", which needs none'
        )
    return target


def _classes_first(output: Tensor, target: Any) -> bool:
    """Whether outputs of three dimensions are (batch, classes, length), as torch's cross entropy takes them: the target, a class
    number for each place, is as long as the last dimension and not as the one before.
    """
    if output.dim() != 3 or not isinstance(target, Tensor) or target.dim() != 2 or target.is_floating_point():
        return False
    return target.shape[1] == output.shape[2] != output.shape[1]


def logits_of(output: Any) -> Tensor:
    """The first output of a language model, (batch, sequence, vocabulary). Raises TaskError where it isn't that."""
    first = next(iter(floating(output)), None)
    if first is None or first.dim() != 3:
        raise TaskError(
            "token-level and sequence-level losses need logits (batch, sequence, vocabulary) as the first output",
            got="none" if first is None else tuple(first.shape),
            remedy='write soft="soft_labels" for outputs of another form',
        )
    return first


def hard_loss(task: Task, student: nn.Module, batch: Batch, output: Any) -> Tensor:
    """The task's own loss. output: the student's, where it has been computed already."""
    if task.train_step is not None:
        value = task.train_step(student, batch)
        if not isinstance(value, Tensor):
            raise TaskError(
                "train_step must return the loss", got=type(value).__name__, remedy="return a scalar tensor, not its .item()"
            )
        return value
    inputs, target = batch
    if target is None:
        raise TaskError(
            "the hard loss needs a target", got="target None in train", remedy="set hard_weight=0 to distill without labels"
        )
    with fitting("train", inputs, target):
        return task.loss(call(student, inputs) if output is None else output, target)
