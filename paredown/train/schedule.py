"""How far a training is, and the learning rate there: linear warm-up, then a cosine to zero, over exactly the effort."""

import math
import time
from dataclasses import dataclass, replace

from paredown.core.effort import Effort
from paredown.task.batches import Batches


@dataclass(frozen=True)
class Clock:
    """Counts the effort in steps, or in seconds since `start` (of `time.monotonic`). Exactly one of the two is given."""

    steps: int | None = None
    seconds: float | None = None
    start: float = 0.0

    def fraction(self, step: int) -> float:
        """Of the effort that is spent when step number `step` (from 0) begins, in [0, 1]; 1 where there is no such step."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None  # one of the two is given
        return min(1.0, self.spent() / self.seconds)

    def spent(self) -> float:
        """Seconds since the start, in which the time before an interruption counts; 0 where steps are counted."""
        return 0.0 if self.steps is not None else time.monotonic() - self.start

    def after(self, spent: float) -> "Clock":
        """The clock of a training that had spent so many seconds before it was interrupted."""
        return self if self.steps is not None else replace(self, start=time.monotonic() - spent)


def clock_of(effort: Effort, batches: Batches, processes: int = 1) -> Clock:
    """The clock of an effort. Of batches without a length the epoch is counted by going through them once."""
    if effort.unit == "seconds":
        return Clock(seconds=effort.amount, start=time.monotonic())
    if effort.unit == "steps":
        return Clock(steps=max(1, round(effort.amount)))
    per_epoch = math.ceil(length(batches) / processes)
    return Clock(steps=max(1, round(effort.amount * per_epoch)))


def length(batches: Batches) -> int:
    """Batches in one pass, which is gone through where they can't tell."""
    known = known_length(batches)
    return sum(1 for _ in batches) if known is None else known


def known_length(batches: Batches) -> int | None:
    """None where they can't tell; a DataLoader over a stream has a length that raises."""
    try:
        return len(batches)  # type: ignore[arg-type]  # not every iterable has a length: that is what is tried
    except TypeError:
        return None


def rate(fraction: float, warmup: float) -> float:
    """The learning rate as a share of its peak, in [0, 1]. fraction: of the effort, in [0, 1]; warmup: likewise."""
    if fraction < warmup:
        return fraction / warmup
    return 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / max(1 - warmup, 1e-9)))
