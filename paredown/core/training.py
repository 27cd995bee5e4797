"""How a step trains, and where it is kept how far it got, as frozen data that checks itself."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import pydantic

from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.fields import choice, count, instance, names, positive, within

Optimizer = Literal["sgd", "adamw"]

_FORBID = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Training:
    """How a step trains: linear warm-up, then a cosine to zero, over exactly the effort.

    effort: an Effort, or as text, "3 epochs". learning_rate: at its peak. warmup: fraction of the effort.
    clip: largest gradient norm (None: no clipping).
    ema: decay of the averaged weights that are returned (None: the last weights).
    channels_last: memory format of 4-dimensional inputs and weights, where the model is safe in it (`train.layout`); faster for
    convolutions on CPUs.
    freeze: names of modules whose weights and statistics stay as they are, so that no gradient is computed for them, and none for
    what comes before where all of that is frozen. Of a Distill also "uncut": the layers before the first one that isn't the
    teacher's own.
    """

    __pydantic_config__: ClassVar = _FORBID
    effort: Effort = field(default_factory=lambda: Effort(3, "epochs"))
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.02
    weight_decay: float = 5e-4
    warmup: float = 0.1
    clip: float | None = 5.0
    ema: float | None = None
    channels_last: bool = True
    freeze: tuple[str, ...] | Literal["uncut"] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "effort", Effort.parse(self.effort))
        choice("optimizer", self.optimizer, Optimizer)
        instance("channels_last", self.channels_last, bool)
        positive("learning_rate", self.learning_rate)
        within("warmup", self.warmup, 0, 1)
        within("weight_decay", self.weight_decay, 0, 1)
        if self.ema is not None:
            within("ema", self.ema, 0, 1)
        if self.clip is not None:
            positive("clip", self.clip)
        if self.freeze != "uncut":
            names("freeze", self.freeze)
            object.__setattr__(self, "freeze", tuple(self.freeze))

    @property
    def frozen(self) -> tuple[str, ...]:
        """The modules that `freeze` names."""
        return () if isinstance(self.freeze, str) else self.freeze

    def require_names(self, of: str) -> None:
        """Raises RecipeError where `freeze` is "uncut" in the training of something else than a student."""
        if isinstance(self.freeze, str):
            raise RecipeError(
                f"the training of {of} freezes modules by name", got=f'freeze="{self.freeze}"', remedy='write freeze=("conv1",)'
            )


@dataclass(frozen=True)
class Resume:
    """Where it is kept how far a training got, so that a process that was killed goes on from there, with the same final weights,
    bit for bit on one thread.

    seconds: between two writes at least; more where writing takes more than a twentieth of the time. steps: instead, writes after
    every so many steps. teacher: a folder for what teachers gave, which is not emptied, so that other trainings find there
    what they ask for the same samples; None: it is kept in `folder`, and gone with the rest.
    """

    folder: Path
    seconds: float = 30.0
    steps: int | None = None
    teacher: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", _folder(self.folder))
        if self.teacher is not None:
            object.__setattr__(self, "teacher", _folder(self.teacher))
        positive("seconds", self.seconds)
        if self.steps is not None:
            count("steps", self.steps)

    @classmethod
    def of(cls, value: "Resume | str | Path") -> "Resume":
        """A folder alone is accepted too."""
        return value if isinstance(value, Resume) else cls(value)  # type: ignore[arg-type]  # __post_init__ makes it a Path

    def within(self, name: str) -> "Resume":
        """The same for a part of the work, in a folder of its own."""
        return replace(self, folder=self.folder / name)


def _folder(value: object) -> Path:
    """Raises RecipeError for anything but a path."""
    if not isinstance(value, str | Path) or not str(value):
        raise RecipeError("resume must name a folder", got=repr(value), remedy='write resume="runs/student"')
    return Path(value)
