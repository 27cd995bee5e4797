"""What a benchmark has done already lies under runs/bench, so that one that was killed goes on where it stopped."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

import paredown
from paredown.core.measurement import Measurement
from paredown.measure.quality import Scores, score
from paredown.task.batches import call, evaluating

FOLDER = pathlib.Path("runs/bench")


def once(file: pathlib.Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gave, as plain data: at the first call, or in an earlier run. The file is there whole or not at all."""
    if not file.exists():
        content = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content))
        unfinished.replace(file)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def scored(task: paredown.Task, model: nn.Module, split: str) -> dict[str, Any]:
    """A metric's value for each sample, as plain data."""
    with evaluating(model):
        found = score(lambda inputs: call(model, inputs), task, split)
    assert found.values is not None  # a metric per sample
    return {"digest": found.digest, "values": found.values.tolist()}


def scores_of(metric: paredown.Metric, *kept: dict[str, Any]) -> Scores:
    """The inverse; of several splits one after the other."""
    values = np.concatenate([each["values"] for each in kept])
    return Scores(metric, float(values.mean()), len(values), "".join(each["digest"] for each in kept), values)


def mean_of(metric: str, values: list[float], unit: str = "") -> Measurement:
    """The mean over seeds, with its two-sided 95 % interval by Student's t; none for a single seed."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Measurement(metric, mean, unit, n)
    reach = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Measurement(metric, mean, unit, n, mean - reach, mean + reach)
