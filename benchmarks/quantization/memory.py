"""Peak memory of calibration, in a process of its own for each number of batches."""

import functools
import multiprocessing
import resource
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import paredown
from benchmarks.quantization.parts import Parts, Rows
from benchmarks.record import row
from paredown.core.measurement import Measurement

_BATCH, _FEW, _MANY = 16, 40, 4000


class Stream:
    """So many batches of noise, drawn as they are read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.count):
            yield torch.randn(_BATCH, 3, 16, 16, generator=generator), torch.zeros(_BATCH, dtype=torch.int64)


def calibration(samples: int | None) -> Parts:
    """Each observer on 40 batches and on 4,000 (on as many as `samples` says): the second may need no more."""
    observers = ("minmax", "percentile", "moving_average", "mse", "kl")
    return {observer: functools.partial(_peaks, observer, samples or _MANY) for observer in observers}


def _peaks(observer: str, many: int) -> Rows:
    rows: Rows = []
    for count in (_FEW, many):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_megabytes, (observer, count))
        rows.append(row(f"{observer}, {count} batches", Measurement("peak_memory", peak, "MB")))
    return rows


def peak_megabytes(observer: Any, count: int) -> float:
    """Of this process, after calibrating on all of so many batches."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 10))
    batches = Stream(count)
    task = paredown.Task(
        model=model.eval(), example_inputs=(torch.randn(2, 3, 16, 16),), train=batches, validation=list(Stream(1))
    )
    paredown.quantize(task, paredown.Quantize(samples=0, activations=paredown.Activations(observer=observer)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
