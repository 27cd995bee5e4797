"""Every criterion on the published ResNet-20, at 0.7x and 0.5x MACs, without training: batch norms recalibrated, nothing else.

    python -m benchmarks.criteria            about 5 minutes on one core

Top-1 on the first 1,000 validation images (the interval is wide: +-3 points; the table tells the good from the bad, not the good
from the best). "not per MAC": the same scores ranked as they are, where the criterion's own way is to divide by the MACs that
an atom saves. Random is the mean of three seeds.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import torch

import paredown
from benchmarks.record import row, write
from examples.cifar10_resnet20 import Augmented, data
from paredown.core.measurement import Measurement
from paredown.core.steps import Criterion
from paredown.measure.cost import count_macs
from paredown.measure.quality import quality, score
from paredown.pruning.scores import ADDITIVE, scores
from paredown.task.batches import call
from paredown.train.batchnorm import recalibrate_

_GOALS = ("0.7x", "0.5x")
_SEEDS = (0, 1, 2)
_VALIDATION, _TRAIN = 1000, 2560


def cifar_task() -> paredown.Task:
    load = data()
    images, labels, _ = load.cifar10("train", _TRAIN)
    held, truth, _ = load.cifar10("validation", _VALIDATION)
    validation = list(zip(load.normalize(held).split(250), torch.as_tensor(truth).split(250), strict=True))
    return paredown.Task(
        model=load.cifar_resnet(20),
        example_inputs=(validation[0][0][:2],),
        train=Augmented(torch.as_tensor(images), torch.as_tensor(labels), load.normalize),
        validation=validation,
        name="ResNet-20 on CIFAR-10",
    )


def not_per_mac(name: Criterion) -> Callable[..., Any]:
    """The criterion's scores as a callable's, which are never divided by MACs."""
    return functools.partial(_raw, name)


def _raw(name: Criterion, model: Any, task: paredown.Task, groups: Any) -> Any:
    return scores(model, task, groups, name)


def measured(task: paredown.Task, importance: Any, goal: str, seed: int = 0) -> tuple[Measurement, float]:
    """Top-1 after the cut and new batch-norm statistics, and the MACs that are left as a ratio."""
    config = paredown.Prune(macs=goal, importance=importance, widths=paredown.Widths(round_to=4))
    pruned = paredown.prune(task, config, seed=seed)
    recalibrate_(pruned, task.train)
    found = score(lambda inputs: call(pruned, inputs), task, "validation")
    return quality(found), count_macs(pruned, task.inputs) / count_macs(task.model, task.inputs)


def table(task: paredown.Task) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in get_args(Criterion):
        for goal in _GOALS:
            if name == "random":
                rows.append(_random(task, goal))
                continue
            rows.append(_one(task, name, name, goal))
            if name in ADDITIVE:
                rows.append(_one(task, f"{name}, not per MAC", not_per_mac(name), goal))
        write("criteria.csv", rows)
    return rows


def _one(task: paredown.Task, case: str, importance: Any, goal: str) -> dict[str, Any]:
    found, ratio = measured(task, importance, goal)
    return row(case, found, goal=goal, macs_ratio=round(ratio, 4))


def _random(task: paredown.Task, goal: str) -> dict[str, Any]:
    found = [measured(task, "random", goal, seed) for seed in _SEEDS]
    values = [measurement.value for measurement, _ in found]
    mean = Measurement("top-1 mean", float(np.mean(values)), "", len(values), min(values), max(values))
    return row("random", mean, goal=goal, macs_ratio=round(float(np.mean([ratio for _, ratio in found])), 4))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(write("criteria.csv", table(cifar_task())))
