"""ResNet-20 on CIFAR-10: int8 alone in both runtimes, and pruning to half of the MACs with three epochs of recovery.

    python -m benchmarks.resnet20            both, about 40 minutes on two cores
    python -m benchmarks.resnet20 int8       the first alone, about 3 minutes
    python -m benchmarks.resnet20 prune      the second alone

Peers on the same kind of machine, batch 64 (measured once): ONNX Runtime's quantizer 91.76, 0.32x bytes, 0.58x
latency; NNCF 91.74, 0.43x bytes, 0.53x latency in OpenVINO; Torch-Pruning to 0.47x MACs with three epochs 88.05.
"""

import dataclasses
import hashlib
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from torch import nn

import paredown
from benchmarks.record import row, write
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.measurement import Measurement
from paredown.core.target import Runtime, Target
from paredown.measure.cost import count_macs
from paredown.measure.quality import Scores, drop, quality
from paredown.pipeline.evaluate import compare_latency, score_file

_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
_SEEDS = (0, 1, 2)
# The learning rate was chosen on the validation half; widths are multiples of 4, since no width of this net exceeds 64.
_HALF = paredown.Recipe((paredown.Prune(ratio=0.5, round_to=4), paredown.Distill(training=paredown.Training(learning_rate=0.05))))


def int8(task: paredown.Task) -> list[dict[str, Any]]:
    """The int8 file against the fp32 file, over all 10,000 official test images, in both runtimes."""
    rows: list[dict[str, Any]] = []
    for runtime in _RUNTIMES:
        target = Target(runtime, batch=64)
        quantized = paredown.quantize(task, paredown.Quantize(target=runtime))
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder) / f"{name}.onnx" for name in ("fp32", "int8")]
            for model, file in zip((task.model, quantized), files, strict=True):
                paredown.export(model, task, target=target, path=file)
            before, after = (official_test(task, file, target) for file in files)
            latency = compare_latency(task, *files, target, pairs=100)
            size = files[1].stat().st_size / files[0].stat().st_size
            rows += [
                row(f"{runtime} fp32", quality(before, 0.95)),
                row(f"{runtime} int8", quality(after, 0.95)),
                row(f"{runtime} int8", drop(before, after)),
                row(f"{runtime} int8", latency.ratio),
                row(f"{runtime} int8", Measurement("size_ratio", size, "x")),
            ]
    return rows


def prune(task: paredown.Task) -> list[dict[str, Any]]:
    """Half of the MACs removed, three epochs of distillation: one row a seed, and their mean; official test images."""
    rows: list[dict[str, Any]] = []
    values: list[float] = []
    for seed in _SEEDS:
        student = recovered(task, _HALF, seed)
        found = quality(_exported(task, student), 0.95)
        values.append(found.value)
        kept = count_macs(student, task.inputs) / count_macs(task.model, task.inputs)
        rows.append(row("prune 0.5 + distill 3 epochs", found, seed=seed, macs_ratio=round(kept, 4)))
        write("resnet20_prune.csv", rows)
    spread = float(np.std(values, ddof=1))
    mean = Measurement("top-1 mean", float(np.mean(values)), "", len(values), min(values), max(values))
    return [*rows, row("prune 0.5 + distill 3 epochs", mean, seed="mean", standard_deviation=round(spread, 5))]


def recovered(task: paredown.Task, recipe: paredown.Recipe, seed: int) -> nn.Module:
    """The model after the recipe; kept under runs/bench, so that a killed benchmark goes on where it stopped."""
    digest = hashlib.sha256(f"{recipe!r} {seed}".encode()).hexdigest()[:12]
    folder = pathlib.Path("runs/bench") / digest
    if not folder.exists():
        paredown.save_checkpoint(paredown.apply(task, recipe, seed=seed), folder)
    return paredown.load_checkpoint(folder, task.model)


def official_test(task: paredown.Task, file: pathlib.Path, target: Target) -> Scores:
    """Scores over both halves of the official test images."""
    first, second = (score_file(task, file, target, split) for split in ("validation", "test"))
    values = np.concatenate([first.values, second.values])
    return dataclasses.replace(
        first, value=float(values.mean()), n=len(values), digest=first.digest + second.digest, values=values
    )


def _exported(task: paredown.Task, model: nn.Module) -> Scores:
    target = Target(batch=64)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.onnx"
        paredown.export(model, task, target=target, path=file)
        return official_test(task, file, target)


def main(which: str = "all") -> None:
    task = cifar_task()
    if which in ("all", "int8"):
        print(write("resnet20_int8.csv", int8(task)))
    if which in ("all", "prune"):
        print(write("resnet20_prune.csv", prune(task)))


if __name__ == "__main__":
    main(*sys.argv[1:])
