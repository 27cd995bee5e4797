"""What each scheme of distillation recovers per second: ResNet-56 at 0.35x of its MACs, CIFAR-10.

    python -m benchmarks.recovery                        87 trainings of 6.8 hours, 180 s first; goes on where it stopped
    python -m benchmarks.recovery 180                    those of 180 s: 29 trainings of 87 minutes, and their scores
    python -m benchmarks.recovery cell hints 180 0       one scheme, time and seed, at each learning rate
    python -m benchmarks.recovery table                  the cells that are done, into benchmarks/results/recovery.csv
    python -m benchmarks.recovery smoke                  two steps of every scheme; nothing is written

Every student begins as the same cut with the same recalibrated batch norms; a seed is the order and the augmentation of the
images. `seconds` is what is spent on training; of the schemes that train blocks first a third goes there. Each of the three times
is a training of its own: the learning rate falls to zero at its end, so one of 600 s has after 60 s not what one of 60 s gives.
The teacher is asked on the fly. Tracing and proposals come on top: `wall_seconds` is everything. Of plain fine-tuning's three
learning rates, and of the other schemes' two, the one that the first seed did best with on the validation images gets the other
seeds. Drops are on the 5,000 validation images, which choose, and on the 5,000 of the test.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

import paredown
from benchmarks.cifar import SEEDS
from benchmarks.kept import once, scored, scores_of
from benchmarks.record import read, row, write
from examples.cifar10_resnet20 import task as cifar_task
from paredown import AttentionTransfer, Blocks, Distill, Hint, Training
from paredown.core.effort import Effort
from paredown.core.measurement import Measurement
from paredown.measure.cost import count_macs
from paredown.measure.quality import Scores, drop
from paredown.train.batchnorm import recalibrate_

FOLDER = pathlib.Path("runs/bench/recovery")
KEPT, SECONDS = 0.35, (180, 60, 600)  # in the order in which they are trained
RATES, PLAIN_RATES = (0.05, 0.02), (0.05, 0.02, 0.1)
SCHEMES = ("plain", "soft_labels", "attention_transfer", "hints", "blocks", "hidden_layers", "combination")
SPLITS = ("validation", "test")
_BLOCKS = 1 / 3  # of the time


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: how, how long, with which seed and learning rate."""

    scheme: str
    effort: Effort
    seed: int
    rate: float

    @property
    def file(self) -> pathlib.Path:
        return FOLDER / f"{hashlib.sha256(f'{self.config()!r} {self.seed}'.encode()).hexdigest()[:12]}.json"

    def config(self) -> Distill:
        """Batch norms are recalibrated already, once for all."""
        features: dict[str, tuple[Any, ...]] = {"attention_transfer": (AttentionTransfer(),), "hints": (Hint(),)}
        features["combination"] = features["hidden_layers"] = Distill.combined().features
        blocks = self.scheme in ("blocks", "combination")
        return Distill(
            hard_weight=1.0 if self.scheme == "plain" else 0.1,
            training=self._training(1 - _BLOCKS if blocks else 1.0),
            reconstruct=Blocks(training=self._training(_BLOCKS), solve=False) if blocks else False,
            recalibrate=False,
            features=features.get(self.scheme, ()),
            balance=self.scheme in ("combination", "hidden_layers"),
        )

    def _training(self, share: float) -> Training:
        amount = self.effort.amount * share
        return Training(effort=Effort(max(1, amount), self.effort.unit), learning_rate=self.rate)


@functools.lru_cache(maxsize=1)
def task_of(seed: int) -> paredown.Task:
    return cifar_task(56, seed=seed)


def cells(times: Sequence[int] = SECONDS) -> Iterator[Cell]:
    """One time after the other: every scheme at each of its rates with the first seed, then at the best of them with the others.

    What is best is known once the first seed is done: take one after the other.
    """
    first, *others = SEEDS
    for effort in (Effort(seconds, "seconds") for seconds in times):
        for scheme in SCHEMES:
            yield from (Cell(scheme, effort, first, rate) for rate in rates(scheme))
        for seed in others:
            for scheme in SCHEMES:
                yield from (Cell(scheme, effort, seed, rate) for rate in [best_rate(scheme, effort)] if rate is not None)


def rates(scheme: str) -> tuple[float, ...]:
    """Learning rates that a scheme is tried with."""
    return PLAIN_RATES if scheme == "plain" else RATES


def best_rate(scheme: str, effort: Effort) -> float | None:
    """By the first seed's drop on the validation images; None before all rates are done with it."""
    tried = [Cell(scheme, effort, SEEDS[0], rate) for rate in rates(scheme)]
    if not all(cell.file.exists() for cell in tried):
        return None
    return min(tried, key=lambda cell: json.loads(cell.file.read_text())["validation"]["value"]).rate


def cut(task: paredown.Task) -> nn.Module:
    """Where every student begins; kept, so that all do."""
    folder = FOLDER / "cut"
    if not folder.exists():
        pruned = paredown.prune(task, paredown.Prune(ratio=1 - KEPT, widths=paredown.Widths(round_to=4)))
        recalibrate_(pruned, task.train)
        paredown.save_checkpoint(pruned, folder)
    return paredown.load_checkpoint(folder, task.model)


def baseline(task: paredown.Task, split: str) -> Scores:
    """The original's scores; right and wrong answers are kept, since asking takes a minute."""
    return scores_of(task.scorer, once(FOLDER / f"baseline-{split}.json", lambda: scored(task, task.model, split)))


def run(cell: Cell) -> dict[str, Any]:
    """What a cell gave; trained only where it wasn't before, and from where it was killed."""
    return once(cell.file, lambda: _trained(cell))


def _trained(cell: Cell) -> dict[str, Any]:
    start, task, began = cut(task_of(0)), task_of(cell.seed), time.monotonic()
    student = paredown.distill(task, cell.config(), model=start, seed=cell.seed, resume=cell.file.with_suffix(""))
    found: dict[str, Any] = {"wall_seconds": round(time.monotonic() - began, 1)}
    for split in SPLITS:
        own = scores_of(task.scorer, scored(task, student, split))
        found[split] = dataclasses.asdict(drop(baseline(task, split), own))
    found["macs_ratio"] = round(count_macs(student, task.inputs) / count_macs(task.model, task.inputs), 4)
    return found


def table() -> list[dict[str, Any]]:
    """A row for each cell that is done and split; the mean over seeds where all are, at the best rate; and what that mean is of
    plain fine-tuning's.
    """
    rows, done = [], [cell for cell in cells() if cell.file.exists()]
    for cell in done:
        kept = json.loads(cell.file.read_text())
        extra = {key: kept[key] for key in ("macs_ratio", "wall_seconds")}
        for split in SPLITS:
            fields = {"scheme": cell.scheme, "seconds": cell.effort.amount, "learning_rate": cell.rate, "split": split}
            rows.append(row(_name(cell), Measurement(**kept[split]), **fields, seed=cell.seed, **extra))
    for effort in dict.fromkeys(cell.effort for cell in done):
        plain = _seeds("plain", effort, done)
        for found in (_seeds(scheme, effort, done) for scheme in SCHEMES):
            rows += [_mean(found, split) for split in SPLITS if found]
            rows += [_ratio(found, plain, split) for split in SPLITS if found and plain]
    return rows


def written() -> pathlib.Path:
    """The table. What it holds of a time stays until all of that time is done here."""
    rows = table()
    whole = {each["seconds"] for each in rows if each["metric"] == "of plain's drop" and each["scheme"] == SCHEMES[-1]}
    others = [each for each in read("recovery.csv") if float(each["seconds"]) not in whole]
    known = {float(each["seconds"]) for each in others}
    return write("recovery.csv", others + [each for each in rows if each["seconds"] not in known])


def _seeds(scheme: str, effort: Effort, done: Sequence[Cell]) -> list[Cell]:
    """The cells of a scheme's best rate, if all of its seeds are done."""
    rate = best_rate(scheme, effort)
    found = [cell for cell in done if (cell.scheme, cell.effort, cell.rate) == (scheme, effort, rate)]
    return found if len(found) == len(SEEDS) else []


def _ratio(found: list[Cell], plain: list[Cell], split: str) -> dict[str, Any]:
    """Of mean drops; from the least to the most of the seeds' own ratios."""
    ours, theirs = np.array(_drops(found, split)), np.array(_drops(plain, split))
    each, cell = ours / theirs, found[0]
    ratio = Measurement(
        "of plain's drop", float(ours.mean() / theirs.mean()), "x", len(ours), float(each.min()), float(each.max())
    )
    fields = {"scheme": cell.scheme, "seconds": cell.effort.amount, "learning_rate": cell.rate, "split": split, "seed": "mean"}
    return row(_name(cell), ratio, **fields)


def _drops(found: list[Cell], split: str) -> list[float]:
    return [json.loads(cell.file.read_text())[split]["value"] for cell in found]


def _mean(found: list[Cell], split: str) -> dict[str, Any]:
    values, cell = _drops(found, split), found[0]
    mean = Measurement("mean drop", float(np.mean(values)), "", len(values), min(values), max(values))
    fields = {"scheme": cell.scheme, "seconds": cell.effort.amount, "learning_rate": cell.rate, "split": split, "seed": "mean"}
    return row(_name(cell), mean, **fields, standard_deviation=round(float(np.std(values, ddof=1)), 5))


def _name(cell: Cell) -> str:
    return f"{cell.scheme} {cell.effort}"


def smoke(task: paredown.Task) -> None:
    """Every scheme for two steps from the recalibrated cut."""
    start = paredown.prune(task, paredown.Prune(ratio=1 - KEPT, importance="magnitude", widths=paredown.Widths(round_to=4)))
    for scheme in SCHEMES:
        student = paredown.distill(task, Cell(scheme, Effort(2, "steps"), 0, rates(scheme)[0]).config(), model=start)
        print(f"{scheme}: {count_macs(student, task.inputs) / count_macs(task.model, task.inputs):.3f}x MACs")


def main(words: list[str]) -> None:
    match words:
        case ["cell", scheme, seconds, seed] if scheme in SCHEMES:
            for rate in rates(scheme):
                print(run(Cell(scheme, Effort(float(seconds), "seconds"), int(seed), rate)))
        case ["table"]:
            print(written())
        case ["smoke"]:
            smoke(cifar_task(56, 512))
        case [] | [_] if not words or words[0] in map(str, SECONDS):
            for cell in cells(tuple(map(int, words)) or SECONDS):
                run(cell)
                print(written())
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
