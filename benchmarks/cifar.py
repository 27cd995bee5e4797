"""What the CIFAR-10 benchmarks share: students that survive a killed run, and scores over the 10,000 official test images."""

import copy
import dataclasses
import hashlib
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
from torch import nn

import paredown
from benchmarks.record import row
from examples.cifar10_resnet20 import Augmented
from paredown.core.measurement import Measurement
from paredown.core.target import Target
from paredown.measure.cost import count_macs
from paredown.measure.quality import Scores, quality
from paredown.pipeline.evaluate import score_file

SEEDS = (0, 1, 2)
FOLDER = pathlib.Path("runs/bench")


def seeds(task: paredown.Task, case: str, recipe: paredown.Recipe) -> list[dict[str, Any]]:
    """The exported student of each seed, one row each, and their mean; top-1 over the official test images."""
    rows: list[dict[str, Any]] = []
    values: list[float] = []
    for seed in SEEDS:
        student = recovered(task, recipe, seed)
        found = quality(exported_scores(task, student), 0.95)
        values.append(found.value)
        kept = count_macs(student, task.inputs) / count_macs(task.model, task.inputs)
        rows.append(row(case, found, seed=seed, macs_ratio=round(kept, 4)))
    spread = float(np.std(values, ddof=1))
    mean = Measurement("top-1 mean", float(np.mean(values)), "", len(values), min(values), max(values))
    return [*rows, row(case, mean, seed="mean", standard_deviation=round(spread, 5))]


def recovered(task: paredown.Task, recipe: paredown.Recipe, seed: int) -> nn.Module:
    """The model after the recipe; kept under runs/bench, so that a killed benchmark goes on where it stopped.

    The seed is that of the order and the augmentation of the images too. Students of one seed are trained on the same, so that
    the teacher is asked only for the first one's.
    """
    task = reseeded(task, seed)
    digest = hashlib.sha256(f"{recipe!r} {seed}".encode()).hexdigest()[:12]
    folder = FOLDER / digest
    if not folder.exists():
        place = paredown.Resume(folder.with_suffix(".unfinished"), teacher=FOLDER / "teacher")
        paredown.save_checkpoint(paredown.apply(task, recipe, seed=seed, resume=place), folder)
        shutil.rmtree(place.folder)
    return paredown.load_checkpoint(folder, task.model)


def reseeded(task: paredown.Task, seed: int) -> paredown.Task:
    """The task with its training images in the order, and with the augmentation, of another seed."""
    assert isinstance(task.train, Augmented)  # what the example's task has
    train = copy.copy(task.train)
    train.seed = seed
    return dataclasses.replace(task, train=train)


def official_test(task: paredown.Task, file: pathlib.Path, target: Target) -> Scores:
    """Scores over both halves of the official test images."""
    first, second = (score_file(task, file, target, split) for split in ("validation", "test"))
    values = np.concatenate([first.values, second.values])
    return dataclasses.replace(
        first, value=float(values.mean()), n=len(values), digest=first.digest + second.digest, values=values
    )


def exported_scores(task: paredown.Task, model: nn.Module) -> Scores:
    target = Target(batch=64)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.onnx"
        paredown.export(model, task, target=target, path=file)
        return official_test(task, file, target)
