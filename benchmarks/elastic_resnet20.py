"""ResNet-20 on CIFAR-10 as a supernet: subnets at 0.6x measured latency or less, recovered; how well inherited weights rank them.

    python -m benchmarks.elastic_resnet20          an hour and a half on two cores; goes on where it was killed
    python -m benchmarks.elastic_resnet20 smoke    the same path with next to no training, a few minutes; writes no results

Asked: a drop of at most 1.5 points for the best of them. Everything is chosen on the validation half of the official test images;
figures are of the other half, of the exported files. Seconds are those of all sessions that it took.
"""

import json
import pathlib
import sys
import time
from typing import Any

import paredown
from benchmarks.record import row, write
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.measurement import Measurement
from paredown.core.target import Target
from paredown.measure.quality import drop
from paredown.pipeline.architecture import Subnet, SubnetResult, search_subnets
from paredown.pipeline.evaluate import compare_latency, score_file

FOLDER = pathlib.Path("runs/bench/elastic_resnet20")
_TARGET = Target(batch=1, threads=1)  # with two, a small net at batch 1 is in one of several states in each process
_EVERY = 5.0  # seconds between two writes of the time spent
_EFFORTS = ("3 epochs", "5 epochs")  # of the best subnet's recovery
_WIDTHS = paredown.Widths(floor=0.5, round_to=8)


def config(*, smoke: bool) -> paredown.Subnets:
    """Widths from one half on, and branches that may be skipped; kernels stay as they are, to keep the space small."""
    supernet = paredown.Training(effort="3 steps" if smoke else "4 epochs", learning_rate=0.05)
    recover = paredown.Training(effort="2 steps" if smoke else "0.5 epochs", learning_rate=0.05)
    return paredown.Subnets(
        latency="0.6x",
        space=paredown.SubnetSpace(_WIDTHS, ("depth",)),
        supernet=supernet,
        evaluations=6 if smoke else 60,
        keep=2 if smoke else 8,
        recover=paredown.Distill(training=recover),
    )


class Stopwatch:
    """Seconds of all sessions together, in a file: those of a killed one too, up to its last report of progress."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.start = path, time.monotonic()
        self.before = float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0
        self.written = 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start

    def __call__(self, _what: str, _fraction: float) -> None:
        """As a run's progress."""
        if self.seconds - self.written > _EVERY:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"seconds": self.seconds}))
            self.written = self.seconds


def longer(task: paredown.Task, best: Subnet, folder: pathlib.Path, effort: str, progress: Stopwatch) -> list[Measurement]:
    """The best subnet recovered for longer, by outputs and hidden layers: its drop on test, and its paired latency ratio."""
    if not (folder / "manifest.json").exists():
        training = paredown.Training(effort=effort, learning_rate=0.05)
        config, halfway = paredown.Distill.combined(training), folder.with_name(f"{folder.name}-halfway")
        found = paredown.distill(task, config, model=best.model, resume=halfway, progress=progress)
        paredown.save_checkpoint(found, folder)
    model = paredown.load_checkpoint(folder, task.model)
    files = [folder.with_name(f"{folder.name}-{name}.onnx") for name in ("original", "subnet")]
    for each, file in zip((task.model, model), files, strict=True):
        paredown.export(each, task, target=_TARGET, path=file)
    before, after = (score_file(task, file, _TARGET, "test") for file in files)
    return [drop(before, after), compare_latency(task, *files, _TARGET, pairs=100).ratio]


def rows(result: SubnetResult) -> list[dict[str, Any]]:
    found = []
    for i, each in enumerate(result.candidates):
        shared = {"macs": each.macs, "inherited": round(each.inherited, 4), "recovered": round(each.quality.value, 4)}
        measured = [m for m in (each.test_drop, each.latency_ratio) if m is not None]
        found += [row(f"subnet {i}, short recovery", m, **shared) for m in measured]
    correlation = Measurement("rank correlation", result.rank_correlation or 0.0, "", len(result.candidates))
    found.append(row("inherited against recovered, validation", correlation))
    if result.blocks is not None and result.blocks.error is not None:
        error = Measurement("error of the latency table", result.blocks.error, "", len(result.blocks.timed.ms))
        found.append(row("root mean square, over subnets timed as a whole", error))
    return found


def main(mode: str = "full") -> None:
    smoke = mode == "smoke"
    folder = FOLDER.with_name(f"{FOLDER.name}{'-smoke' if smoke else ''}")
    clock = Stopwatch(folder.with_name(f"{folder.name}.json"))
    task = cifar_task(train_limit=1_000 if smoke else None)
    result = search_subnets(task, config(smoke=smoke), target=_TARGET, out=folder, progress=clock)
    found = rows(result)
    for effort in ("2 steps",) if smoke else _EFFORTS:
        place = folder.with_name(f"{folder.name}-best-{effort.replace(' ', '-')}")
        found += [row(f"best subnet, {effort} of recovery", m) for m in longer(task, result.best, place, effort, clock)]
    found = [{**each, "seconds": round(clock.seconds)} for each in found]
    for each in found:
        print(each["case"], each["metric"], f"{each['value']:.4f}")
    if not smoke:
        print(write("elastic_resnet20.csv", found))


if __name__ == "__main__":
    main(*sys.argv[1:])
