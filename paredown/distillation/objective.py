"""What a student is trained on: outputs, labels and hidden layers, by the weights that the config gives or by balance.

    loss = (1 - hard_weight) soft + hard_weight hard + sum of weight * feature loss

Balance: on the first batch each feature loss gets a scale that makes its gradient, over the weights of the student, as long as
that of the first two terms together (of the first feature loss, where there are none), times its weight over the default
one. A loss that has no gradient on that batch keeps its weight.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.core.knowledge import OfAttention, Soft
from paredown.core.steps import Distill
from paredown.distillation.attended import Attended, attended_loss
from paredown.distillation.attention import Attention, attentions
from paredown.distillation.compared import Compared, feature_loss
from paredown.distillation.features import with_features
from paredown.distillation.losses.dkd import dkd_loss
from paredown.distillation.losses.logit_mse import logit_mse_loss
from paredown.distillation.losses.multi_label import multi_label_loss
from paredown.distillation.losses.regression import regression_loss
from paredown.distillation.losses.soft_labels import blend, soft_label_loss
from paredown.distillation.losses.standardized import standardized_loss
from paredown.distillation.teacher import Asked, floating
from paredown.task.batches import Batch, Inputs, batch_size, call
from paredown.task.task import Task


@dataclass
class Objective:
    """A loss for the training loop. teacher: None where nothing is asked of one.

    compared, attended: the pairs of the feature losses.
    """

    task: Task
    config: Distill
    teacher: Asked | None = None
    compared: Sequence[Compared] = ()
    attended: Sequence[Attended] = ()
    scales: list[float] | None = None

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        config = self.config
        if self.teacher is None:
            return config.hard_weight * hard_loss(self.task, student, batch, None)
        samples = batch_size(batch[0])
        with _watching(self.attended, samples) as our_attentions:
            output, ours = _seen(student, batch[0], [each.pair.student for each in self.compared])
        with _watching(self.attended, samples) as their_attentions:
            wanted, theirs = self._asked(self.teacher, batch[0])
        base: Tensor | None = None
        if config.soft is not None and config.hard_weight < 1:
            base = soft_loss(config.soft, output, wanted, batch[1], config.temperature)
        if config.hard_weight > 0:
            hard = hard_loss(self.task, student, batch, output)
            base = config.hard_weight * hard if base is None else blend(base, hard, config.hard_weight)
        if not config.features and base is not None:
            return base
        terms = [
            attended_loss(feature, self.attended, our_attentions, their_attentions)
            if isinstance(feature, OfAttention)
            else feature_loss(feature, self.compared, ours, theirs)
            for feature in config.features
        ]
        if self.scales is None:
            self.scales = self._scales(student, base, terms)
        scaled = [scale * term for scale, term in zip(self.scales, terms, strict=True)]
        return torch.stack([*scaled, *([] if base is None else [base])]).sum()

    def _asked(self, teacher: Asked, inputs: Inputs) -> tuple[list[Tensor], dict[str, Tensor]]:
        names = [each.pair.teacher for each in self.compared]
        return teacher.features(inputs, names) if names or self.attended else (teacher(inputs), {})

    def _scales(self, student: nn.Module, base: Tensor | None, terms: list[Tensor]) -> list[float]:
        weights = [feature.weight for feature in self.config.features]
        if not self.config.balance:
            return weights
        adapters = {id(p) for each in self.compared if each.adapter is not None for p in each.adapter.parameters()}
        shared = [p for p in student.parameters() if p.requires_grad and id(p) not in adapters]
        relative = [feature.weight / type(feature)().weight for feature in self.config.features]
        return balanced(base, terms, weights, relative, shared)


def balanced(
    base: Tensor | None, terms: Sequence[Tensor], weights: Sequence[float], relative: Sequence[float], shared: Sequence[Tensor]
) -> list[float]:
    """A scale for each term: `relative` times the length of the base's gradient over its own; `weights` where that can't be."""
    lengths = [_length(term, shared) for term in terms]
    wanted = next((length for length in lengths if length > 0), 0.0) if base is None else _length(base, shared)
    return [
        share * wanted / length if length > 0 and wanted > 0 else weight
        for length, weight, share in zip(lengths, weights, relative, strict=True)
    ]


def _length(term: Tensor, shared: Sequence[Tensor]) -> float:
    """Of the gradient by the weights."""
    if not term.requires_grad:
        return 0.0
    found = torch.autograd.grad(term, shared, retain_graph=True, allow_unused=True)
    squares = [gradient.double().square().sum() for gradient in found if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _watching(attended: Sequence[Attended], samples: int) -> AbstractContextManager[list[Attention]]:
    """Attentions are watched only where some are compared: watching costs a little at every call of torch."""
    return attentions(samples) if attended else nullcontext([])


def _seen(student: nn.Module, inputs: Inputs, names: list[str]) -> tuple[Any, dict[str, Tensor]]:
    return with_features(student, inputs, names) if names else (call(student, inputs), {})


def soft_loss(kind: Soft, output: Any, teacher: Sequence[Tensor], target: Any, temperature: float) -> Tensor:
    """The mean over the floating-point tensors that both give. target: read by "dkd" only.

    Raises TaskError where the outputs differ in number or shape, or the target is missing that "dkd" reads.
    """
    student = floating(output)
    if len(student) != len(teacher) or not student:
        raise TaskError(
            "teacher and student must give the same outputs",
            got=f"{len(teacher)} and {len(student)} floating-point tensors",
            remedy="return the same outputs in training and in evaluation mode, or set hard_weight=1",
        )
    losses = [_soft(kind, s, t, target, temperature) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(losses).mean()


def _soft(kind: Soft, student: Tensor, teacher: Tensor, target: Any, temperature: float) -> Tensor:
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
            return regression_loss(student, teacher)
        case "dkd":
            if not isinstance(target, Tensor):
                raise TaskError(
                    'soft="dkd" needs a target',
                    got=f"target {target} in train",
                    remedy='write soft="soft_labels", which needs none',
                )
            return dkd_loss(student, teacher, target, temperature=temperature)


def hard_loss(task: Task, student: nn.Module, batch: Batch, output: Any) -> Tensor:
    """The task's own loss. output: the student's, where it has been computed already."""
    if task.train_step is not None:
        return task.train_step(student, batch)
    inputs, target = batch
    if target is None:
        raise TaskError(
            "the hard loss needs a target", got="target None in train", remedy="set hard_weight=0 to distill without labels"
        )
    return task.loss(call(student, inputs) if output is None else output, target)
