"""How a step trains, as frozen data that checks itself."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pydantic

from paredown.core.effort import Effort
from paredown.core.fields import choice, positive, within

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
