"""Do batches that grow during the training, or larger learning rates, recover more in the same time? ResNet-20 at 0.35x MACs.

    python -m benchmarks.batch_growth            18 minutes of one core; goes on where it stopped
    python -m benchmarks.batch_growth smoke      two seconds of each; nothing is written

Every student begins as the same cut with the same recalibrated batch norms and learns by soft labels, for the same seconds, three
seeds. Batches grow as Smith et al. propose (arXiv:1711.00489), twofold at equal parts of the time; the learning rate
falls by its cosine all the same. A batch that grew is several of the user's own batches, one after the other, joined. Top-1 is of
the 5,000 validation images, since it is a choice that this is for.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import paredown
from benchmarks.cifar import SEEDS
from benchmarks.kept import mean_of, once, scored, scores_of
from benchmarks.record import row, write
from benchmarks.train_steps import sized
from examples.cifar10_resnet20 import task as cifar_task
from paredown import Distill, Training
from paredown.core.effort import Effort
from paredown.measure.quality import quality
from paredown.train.batchnorm import recalibrate_

FOLDER = pathlib.Path("runs/bench/batch_growth")
KEPT, SECONDS = 0.35, 45


@dataclasses.dataclass(frozen=True)
class Plan:
    """sizes: of the batches, in equal parts of the time. rate: the learning rate at its peak."""

    sizes: tuple[int, ...]
    rate: float

    def __str__(self) -> str:
        return f"batches of {' to '.join(map(str, self.sizes))}, rate {self.rate:g}"


REFERENCE = Plan((128,), 0.05)
PLANS = (
    REFERENCE,
    Plan((128,), 0.1),
    Plan((64, 128, 256), 0.05),
    Plan((64, 128, 256), 0.1),
    Plan((128, 256, 512), 0.1),
    Plan((32, 64, 128), 0.05),
)


class Growing:
    """Batches of the first size, joined to the later sizes as the time goes on. The time begins with the first batch."""

    def __init__(self, batches: Any, plan: Plan, seconds: float) -> None:
        self.batches, self.plan, self.seconds = batches, plan, seconds
        self.began: float | None = None

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        source = iter(self.batches)
        while parts := [each for each, _ in zip(source, range(self._joined()), strict=False)]:
            inputs, targets = zip(*parts, strict=True)
            yield torch.cat(inputs), torch.cat(targets)

    def _joined(self) -> int:
        """How many batches make one, now."""
        self.began = time.monotonic() if self.began is None else self.began
        part = (time.monotonic() - self.began) / self.seconds * len(self.plan.sizes)
        return self.plan.sizes[min(int(part), len(self.plan.sizes) - 1)] // self.plan.sizes[0]


def cut(task: paredown.Task, folder: pathlib.Path = FOLDER / "cut") -> nn.Module:
    """Where every student begins."""
    if not folder.exists():
        pruned = paredown.prune(task, paredown.Prune(ratio=1 - KEPT, widths=paredown.Widths(round_to=4)))
        recalibrate_(pruned, task.train)
        paredown.save_checkpoint(pruned, folder)
    return paredown.load_checkpoint(folder, task.model)


def trained(plan: Plan, seed: int, seconds: float, start: nn.Module) -> dict[str, Any]:
    task = cifar_task(20, seed=seed)
    train = Growing(sized(task, plan.sizes[0]), plan, seconds)
    training = Training(effort=Effort(seconds, "seconds"), learning_rate=plan.rate)
    config = Distill(hard_weight=0.1, training=training, recalibrate=False)
    student = paredown.distill(dataclasses.replace(task, train=train), config, model=start, seed=seed)
    return scored(task, student, "validation")


def file(plan: Plan, seed: int) -> pathlib.Path:
    return FOLDER / f"{hashlib.sha256(f'{plan!r} {SECONDS} {seed}'.encode()).hexdigest()[:12]}.json"


def rows(plan: Plan, scorer: paredown.Metric) -> list[dict[str, Any]]:
    """Of each seed that is done, the mean over them, and what it gains on the reference, seed by seed."""
    fields = {"sizes": " ".join(map(str, plan.sizes)), "learning_rate": plan.rate, "seconds": SECONDS, "split": "validation"}
    done = [seed for seed in SEEDS if file(plan, seed).exists() and file(REFERENCE, seed).exists()]
    own, reference = (
        [scores_of(scorer, json.loads(file(each, seed).read_text())) for seed in done] for each in (plan, REFERENCE)
    )
    if not done:
        return []
    values, gains = [each.value for each in own], [a.value - b.value for a, b in zip(own, reference, strict=True)]
    found = [row(str(plan), quality(each), seed=seed, **fields) for seed, each in zip(done, own, strict=True)]
    print(f"{plan!s:45s} {np.mean(values):.4f} {np.mean(gains):+.4f} of {len(values)} seeds", flush=True)
    found.append(row(str(plan), mean_of("top-1 mean", values), seed="mean", **fields))
    if plan != REFERENCE:
        found.append(row(str(plan), mean_of(f"gain on {REFERENCE}", gains), seed="mean", **fields))
    return found


def main(mode: str = "full") -> None:
    task = cifar_task(20)
    if mode == "smoke":
        start = paredown.prune(task, paredown.Prune(ratio=1 - KEPT, importance="l1", widths=paredown.Widths(round_to=4)))
        for plan in PLANS:
            print(plan, np.mean(trained(plan, 0, 2.0, start)["values"]))
        return
    start = cut(task)
    for seed in SEEDS:  # one after the other, so that what the machine does meanwhile meets all plans alike
        for plan in PLANS:
            once(file(plan, seed), functools.partial(trained, plan, seed, SECONDS, start))
        print(write("batch_growth.csv", [each for plan in PLANS for each in rows(plan, task.scorer)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
