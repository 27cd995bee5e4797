"""Other teachers than one model: several at once, or the student's own average.

Several, for each sample (or position) z = sum of w_k z_k over the teachers' outputs z_k. "mean": equal weights. "confidence":

    w_k in proportion to 1 - H(softmax(z_k)) / log(classes),   H the entropy

A teacher that is sure counts, one that guesses doesn't. (CA-MKD, arXiv:2201.00007, weighs by the cross entropy with the label
instead; entropy needs no label.)

The student's own average (Tarvainen, Valpola, arXiv:1703.01780): w <- w + (1 - decay_t) (student - w), with
decay_t = min(decay, (1 + t) / (10 + t)): the first steps count less.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.errors import RecipeError, TaskError
from paredown.core.knowledge import Combine
from paredown.distillation.losses.shapes import class_axis
from paredown.distillation.teacher import Asked, Teacher, ask, floating, frozen
from paredown.task.batches import Inputs, call

Given = nn.Module | Sequence[nn.Module] | Literal["ema"] | None  # None: the task's own model

_SMALLEST = 1e-6  # added to a confidence, so that teachers that all guess count the same


class Several:
    """Teachers whose outputs are combined; hidden layers are compared with the first one's."""

    def __init__(self, teachers: Sequence[Teacher], combine: Combine) -> None:
        self._teachers, self._combine = teachers, combine

    @property
    def model(self) -> nn.Module:
        return self._teachers[0].model

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        return combined([teacher(inputs) for teacher in self._teachers], self._combine)

    def compute(self, inputs: Inputs) -> list[Tensor]:
        return combined([teacher.compute(inputs) for teacher in self._teachers], self._combine)

    def features(self, inputs: Inputs, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        first, found = self._teachers[0].features(inputs, names)
        return combined([first, *(teacher(inputs) for teacher in self._teachers[1:])], self._combine), found


class OwnAverage:
    """The exponential moving average of a student while it trains; each question takes the weights of the moment in."""

    def __init__(self, student: nn.Module, decay: float = 0.999) -> None:
        self.model, self._student, self._decay, self._steps = frozen(student), student, decay, 0

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        self._follow()
        return self.compute(inputs)

    @torch.no_grad()
    def compute(self, inputs: Inputs) -> list[Tensor]:
        """By the average as it stands: no step is taken in."""
        return floating(call(self.model, inputs))

    def features(self, inputs: Inputs, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        self._follow()
        return ask(self.model, inputs, names)

    @torch.no_grad()
    def _follow(self) -> None:
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        values = {**dict(self._student.named_parameters()), **dict(self._student.named_buffers())}
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if tensor.is_floating_point():
                tensor.lerp_(values[name], 1 - decay)
            else:
                tensor.copy_(values[name])


def models_of(given: Given, original: nn.Module) -> list[nn.Module]:
    """The models that `teacher=` names; for "ema" the original, of which the student descends.

    Raises RecipeError where it is neither a module, nor a sequence of some, nor "ema".
    """
    match given:
        case None | "ema":
            return [original]
        case nn.ModuleList():
            models = list(given)
        case nn.Module():
            return [given]
        case list() | tuple():
            models = list(given)
        case _:
            models = []
    if not models or not all(isinstance(model, nn.Module) for model in models):
        raise RecipeError(
            'teacher must be a module, a sequence of modules, or "ema"',
            got=given if isinstance(given, str) else type(given).__name__,
            remedy="leave it out for the task's own model",
        )
    return models


def teacher_of(
    given: Given, student: nn.Module, original: nn.Module, *, combine: Combine = "mean", batches_per_pass: int | None
) -> Asked:
    """Who is asked. student: the module that will be trained; its average is the teacher where "ema" is given."""
    if isinstance(given, str) and given == "ema":
        return OwnAverage(student)
    teachers = [Teacher(model, batches_per_pass=batches_per_pass) for model in models_of(given, original)]
    return teachers[0] if len(teachers) == 1 else Several(teachers, combine)


def combined(outputs: Sequence[Sequence[Tensor]], combine: Combine) -> list[Tensor]:
    """One list of outputs from those of each teacher. Raises TaskError where they differ in number or shape."""
    shapes = {tuple(tuple(t.shape) for t in each) for each in outputs}
    if len(shapes) > 1:
        raise TaskError(
            "teachers must give outputs of the same shapes",
            got=" and ".join(map(str, sorted(shapes))),
            remedy="pass teachers with the student's classes",
        )
    columns = [torch.stack(column) for column in zip(*outputs, strict=True)]  # (teachers, batch, ...)
    if combine == "mean":
        return [column.mean(0) for column in columns]
    return [(column * confidences(column)).sum(0) for column in columns]


def confidences(logits: Tensor) -> Tensor:
    """(teachers, batch, classes, ...) -> weights of sum 1 over the teachers, 1 on the dimension of the classes."""
    axis = class_axis(logits[0], logits[0]) + 1
    log_p = F.log_softmax(logits, axis)
    entropy = -(log_p.exp() * log_p).sum(axis, keepdim=True)
    sure = (1 - entropy / math.log(logits.shape[axis])).clamp_min(0) + _SMALLEST
    return sure / sure.sum(0)
