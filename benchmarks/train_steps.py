"""What parts of a training step cost, as paired seconds: frozen layers, a teacher that need not be asked, larger batches.

    python -m benchmarks.train_steps          some minutes of one core; goes on where it stopped
    python -m benchmarks.train_steps smoke    two rounds of two steps; nothing is written

A round trains both sides for some steps, by turns the one or the other first; the time of a step runs from one batch to the next,
making the batch and the optimizer with it. The ratio is the median over pairs of steps, its interval is over rounds.
Students are ResNet-56, cut to 0.35x of its MACs everywhere, or to half of them behind a first stage that is protected. Accuracy
is not measured here. What batches of several sizes recover is for `benchmarks/batch_growth.py`.
"""

import dataclasses
import functools
import hashlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import nn

import paredown
from benchmarks.kept import once
from benchmarks.record import row, write
from examples.cifar10_resnet20 import Augmented
from examples.cifar10_resnet20 import task as cifar_task
from paredown import Cached, Distill, Training
from paredown.core.effort import Effort
from paredown.core.measurement import Measurement
from paredown.distillation.uncut import before_the_cut
from paredown.measure.bootstrap import median_interval
from paredown.task.batches import Batch, Batches

FOLDER = pathlib.Path("runs/bench/train_steps")
ROUNDS, STEPS = 8, 6
_WIDTHS = paredown.Widths(round_to=4)
Side = Callable[[paredown.Task, int], object]  # trains for so many steps


class Stamped:
    """Batches, and when each one was asked for, in seconds."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.asked = batches, list[float]()

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # those of CIFAR-10 have a length

    def __iter__(self) -> Iterator[Batch]:
        self.asked = []
        for batch in self.batches:
            yield batch
            self.asked.append(time.perf_counter())


def seconds(task: paredown.Task, side: Side, steps: int) -> list[float]:
    """Of each step but the first."""
    stamped = Stamped(task.train)
    side(dataclasses.replace(task, train=stamped), steps + 1)
    return np.diff(stamped.asked[: steps + 1]).tolist()


@dataclasses.dataclass(frozen=True)
class Case:
    """Two trainings to hold against each other: the tasks and what trains, the first one the baseline."""

    name: str
    tasks: tuple[paredown.Task, paredown.Task]
    sides: tuple[Side, Side]


def times(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds per sample, (2, rounds, steps)."""
    found = np.empty((2, rounds, steps))
    for i in range(rounds):
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            found[side, i] = seconds(case.tasks[side], case.sides[side], steps)
    for side, task in enumerate(case.tasks):
        found[side] /= len(next(iter(task.train))[0])
    return {"times": found.tolist()}


def rows(case: Case, found: np.ndarray) -> list[dict[str, Any]]:
    """The ratio, second over first, and both. found: as of `times`."""
    ratio = found[1] / found[0]
    low, high = median_interval(ratio, 0.95, 0)
    measured = Measurement("seconds per sample", float(np.median(ratio)), "x", ratio.size, low, high, 0.95)
    print(f"{case.name:70s} {measured.value:.3f}x [{low:.3f}, {high:.3f}]", flush=True)
    sides = (Measurement("ms per sample", float(np.median(each)) * 1e3, "ms", each.size) for each in found)
    return [
        row(case.name, measured),
        *(row(f"{case.name}: {side}", each) for side, each in zip(("before", "after"), sides, strict=True)),
    ]


def trains(student: nn.Module, *, teacher: Any = None, **how: Any) -> Side:
    """By soft labels; how: of the training."""

    def side(task: paredown.Task, steps: int) -> object:
        training = Training(effort=Effort(steps, "steps"), learning_rate=0.05, **how)
        config = Distill(hard_weight=0.1, training=training, recalibrate=False)
        return paredown.distill(task, config, model=student, teacher=teacher)

    return side


def cases(steps: int, folder: pathlib.Path) -> Iterator[Case]:
    """folder: for what the teacher gave."""
    task = cifar_task(56)
    everywhere = paredown.prune(task, paredown.Prune(ratio=0.65, importance="l1", widths=_WIDTHS))
    later = paredown.prune(task, paredown.Prune(ratio=0.5, importance="l1", widths=_WIDTHS, protect=("conv1", "bn1", "layer1")))
    frozen = before_the_cut(task.model, later, task.inputs)
    assert any(name.startswith("layer1") for name in frozen), frozen

    kept, whole = trains(everywhere, teacher=Cached(task.model, folder)), trains(everywhere)
    kept(task, steps + 1)  # what the teacher gives is known from here on
    both = task, task
    yield Case("teacher's outputs kept, cut everywhere", both, (whole, kept))
    yield Case('freeze="uncut", the first of three stages not cut', both, (trains(later), trains(later, freeze="uncut")))
    for batch in (32, 64, 256, 512):
        other = dataclasses.replace(task, train=sized(task, batch))
        yield Case(f"batches of {batch} instead of 128", (task, other), (whole, whole))


def sized(task: paredown.Task, batch: int) -> Augmented:
    """The task's training images in batches of another size."""
    train: Any = task.train
    return Augmented(train.images[:, 4:-4, 4:-4], train.labels, train.normalize, batch, train.seed)


def main(mode: str = "full") -> None:
    smoke, found = mode == "smoke", list[dict[str, Any]]()
    rounds, steps = (2, 2) if smoke else (ROUNDS, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(steps, pathlib.Path(folder)):
            make = functools.partial(times, case, rounds, steps)
            kept = make() if smoke else once(FOLDER / f"{hashlib.sha256(case.name.encode()).hexdigest()[:12]}.json", make)
            found += rows(case, np.array(kept["times"]))
            if not smoke:
                write("train_steps.csv", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
