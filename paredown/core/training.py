"""How a step trains, and where it is kept how far it got, as frozen data that checks itself."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pydantic

from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.fields import choice, count, positive, within

Optimizer = Literal["sgd", "adamw"]

_FORBID = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Training:
    """How a step trains: linear warm-up, then a cosine to zero, over exactly the effort.

    effort: an Effort, or as text, "3 epochs". learning_rate: at its peak. warmup: fraction of the effort.
    clip: largest gradient norm (None: no clipping).
    ema: decay of the averaged weights that are returned (None: the last weights).
    channels_last: memory format of 4-dimensional inputs and weights; faster for convolutions on CPUs.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "effort", Effort.parse(self.effort))
        choice("optimizer", self.optimizer, Optimizer)
        positive("learning_rate", self.learning_rate)
        within("warmup", self.warmup, 0, 1)
        within("weight_decay", self.weight_decay, 0, 1)
        if self.ema is not None:
            within("ema", self.ema, 0, 1)
        if self.clip is not None:
            positive("clip", self.clip)


@dataclass(frozen=True)
class Resume:
    """Where it is kept how far a training got, so that a process that was killed goes on from there, with the same final weights,
    bit for bit on one thread.

    seconds: between two writes at least; more where writing takes more than a twentieth of the time. steps: instead, writes after
    every so many steps.
    """

    folder: Path
    seconds: float = 30.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | Path) or not str(self.folder):
            raise RecipeError("resume must name a folder", got=repr(self.folder), remedy='write resume="runs/student"')
        object.__setattr__(self, "folder", Path(self.folder))
        positive("seconds", self.seconds)
        if self.steps is not None:
            count("steps", self.steps)

    @classmethod
    def of(cls, value: "Resume | str | Path") -> "Resume":
        """A folder alone is accepted too."""
        return value if isinstance(value, Resume) else cls(value)  # type: ignore[arg-type]  # __post_init__ makes it a Path
