"""Other teachers than one model: several at once, or the student's own average.

Several, for each sample (or position) z = sum of w_k z_k over the teachers' outputs z_k. "mean": equal weights. "confidence":

    w_k in proportion to 1 - H(softmax(z_k)) / log(classes),   H the entropy

A teacher that is sure counts, one that guesses doesn't. (CA-MKD, arXiv:2201.00007, weighs by the cross entropy with the label
instead; entropy needs no label.)

The student's own average (Tarvainen, Valpola, arXiv:1703.01780): w <- w + (1 - decay_t) (student - w), with
decay_t = min(decay, (1 + t) / (10 + t)): the first steps count less.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.errors import RecipeError, TaskError
from paredown.core.fields import count, within
from paredown.core.knowledge import Combine
from paredown.distillation.losses.shapes import class_axis
from paredown.distillation.teacher import Asked, Teacher, answer, ask, floating, frozen
from paredown.task.batches import Inputs, call
from paredown.task.task import unwrapped
from paredown.train.state import named_tensors, under


@dataclass(frozen=True)
class Cached:
    """A teacher whose outputs are kept in a folder, by the digests of model and sample, and read from there, mapped into memory:
    by a later run, or by the next of several students. Worth it where samples come again unchanged, in the next pass or in the
    next training: augmentation that is seeded gives each training the same samples. Where nothing is found it ends by itself.

    bytes_at_most: of what is kept.
    """

    model: nn.Module
    folder: str | Path
    bytes_at_most: int = 4 << 30

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise RecipeError("a teacher must be a module", got=type(self.model).__name__, remedy="write Cached(model, folder)")
        if not isinstance(self.folder, str | Path) or not str(self.folder):
            raise RecipeError("outputs are kept in a folder", got=repr(self.folder), remedy='write Cached(model, "runs/teacher")')
        count("bytes_at_most", self.bytes_at_most)


One = nn.Module | Cached


@dataclass(frozen=True)
class Panel:
    """Several teachers, and how their outputs are combined."""

    teachers: Sequence[One]
    combine: Combine = "mean"


@dataclass(frozen=True)
class MovingAverage:
    """The student's own moving average as its teacher; "ema" is the one with this decay. decay: what stays of it each step."""

    decay: float = 0.999

    def __post_init__(self) -> None:
        within("decay", self.decay, 0, 1)


Given = One | Sequence[One] | Panel | MovingAverage | Literal["ema"] | None  # None: the task's own model

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

    def keep(self) -> dict[str, Tensor]:
        return {f"{i}/{name}": tensor for i, teacher in enumerate(self._teachers) for name, tensor in teacher.keep().items()}

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        for i, teacher in enumerate(self._teachers):
            teacher.take_up_(under(f"{i}/", kept))


class OwnAverage:
    """The exponential moving average of a student while it trains; each question takes the weights of the moment in."""

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.model, self._student, self._decay, self._steps = frozen(student), student, decay, 0

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        self._follow()
        return self.compute(inputs)

    @torch.no_grad()
    def compute(self, inputs: Inputs) -> list[Tensor]:
        """By the average as it stands: no step is taken in."""
        return floating(answer(self.model, inputs, call))

    def features(self, inputs: Inputs, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        self._follow()
        return ask(self.model, inputs, names)

    def keep(self) -> dict[str, Tensor]:
        return {"steps": torch.tensor(self._steps), **{f"model/{n}": t for n, t in named_tensors(self.model).items()}}

    @torch.no_grad()
    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        self._become()
        self._steps = int(kept["steps"])
        for name, tensor in named_tensors(self.model).items():
            tensor.copy_(kept[f"model/{name}"])

    @torch.no_grad()
    def _follow(self) -> None:
        if self._steps == 0:
            self._become()
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        values = {**dict(self._student.named_parameters()), **dict(self._student.named_buffers())}
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if tensor.is_floating_point():
                tensor.lerp_(values[name], 1 - decay)
            else:
                tensor.copy_(values[name])

    def _become(self) -> None:
        """Before the first step: where it learns scales or adapters, the student has weights by now that it hadn't at first."""
        if named_tensors(self.model).keys() != named_tensors(self._student).keys():
            self.model = frozen(self._student)


def own_average(given: object) -> MovingAverage | None:
    """What "ema" stands for; None for other teachers."""
    if isinstance(given, str) and given == "ema":
        return MovingAverage()
    return given if isinstance(given, MovingAverage) else None


def models_of(given: Given, original: nn.Module) -> list[nn.Module]:
    """The models that `teacher=` names; for a moving average the original, of which the student descends.

    Raises RecipeError where it is neither a module, nor a sequence of some, nor a moving average.
    """
    if given is None or own_average(given) is not None:
        return [original]
    return [each.model if isinstance(each, Cached) else each for each in _each(given)]


def require_hidden_layers(given: Given) -> None:
    """Raises RecipeError for a teacher of which outputs alone are kept, where hidden layers are compared: it would run anyway."""
    if given is not None and own_average(given) is None and isinstance(_each(given)[0], Cached):
        raise RecipeError(
            "Cached keeps outputs, no hidden layers", got="features", remedy="pass the model itself, or no features"
        )


def _each(given: object) -> list[One]:
    match given:
        case nn.ModuleList() | list() | tuple():
            found = [unwrapped(each) for each in given]
        case nn.Module() | Cached():
            found = [unwrapped(given)]
        case Panel(teachers=teachers):
            found = _each(teachers)
        case _:
            found = []
    if not found or not all(isinstance(each, nn.Module | Cached) for each in found):
        raise RecipeError(
            'teacher must be a module, a sequence of modules, "ema" or MovingAverage()',
            got=given if isinstance(given, str) else type(given).__name__,
            remedy="leave it out for the task's own model",
        )
    return found


def teacher_of(
    given: Given,
    student: nn.Module,
    original: nn.Module,
    *,
    batches_per_pass: int | None,
    folder: Path | None = None,
    lasting: bool = False,
) -> Asked:
    """Who is asked. student: the module that will be trained; its average is the teacher where "ema" is given.

    folder: where outputs are kept that are kept nowhere else. lasting: for other trainings, too.
    """
    if (average := own_average(given)) is not None:
        return OwnAverage(student, average.decay)
    teachers = [
        Teacher(
            each.model,
            batches_per_pass=batches_per_pass,
            bytes_at_most=each.bytes_at_most,
            folder=Path(each.folder),
            lasting=True,
        )
        if isinstance(each, Cached)
        else Teacher(each, batches_per_pass=batches_per_pass, folder=folder, lasting=lasting)
        for each in ([original] if given is None else _each(given))
    ]
    return teachers[0] if len(teachers) == 1 else Several(teachers, given.combine if isinstance(given, Panel) else "mean")


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
