"""ResNet-20 below 8 bits, activations in 8: trained, mixed, and rounded with care; top-1 of the file over the test images."""

import pathlib
import tempfile
from typing import Any

from torch import nn

import paredown
from benchmarks.cifar import recovered
from benchmarks.quantization.convnets import exported, limited, scored
from benchmarks.record import row
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.measurement import Measurement
from paredown.core.target import Target
from paredown.measure.quality import drop, quality

_TARGET = Target("onnxruntime", batch=64)
Rows = list[dict[str, Any]]


def trained(samples: int | None) -> Rows:
    """Weights of 4 bits, every scale trained, three epochs of distillation; a few steps where `samples` is given."""
    task = limited(cifar_task(20), samples)
    effort = "3 epochs" if samples is None else "10 steps"
    recovery = paredown.Distill(
        training=paredown.Training(effort=paredown.Effort.parse(effort), learning_rate=5e-3), recalibrate=False
    )
    step = paredown.Quantize(bits=4, scales="lsq", target=_TARGET.runtime)
    if samples is not None:
        tuned = paredown.distill(task, recovery, model=paredown.quantize(task, step))
        return _rows(task, {"4 bits, lsq": tuned})
    students = {f"4 bits, lsq, seed {seed}": recovered(task, paredown.Recipe((step, recovery)), seed) for seed in (0, 1, 2)}
    return _rows(task, {"4 bits, not trained": paredown.quantize(task, step), **students})


def mixed(samples: int | None) -> Rows:
    """4 bits on average, without training. `evaluations`: with the local search on validation images, and without."""
    task = limited(cifar_task(20), samples)

    def chosen(**fields: Any) -> nn.Module:
        return paredown.quantize(task, paredown.Quantize(bits=paredown.MixedBits(average=4, **fields), target=_TARGET.runtime))

    models = {
        "4 bits everywhere but at the edges": paredown.quantize(task, paredown.Quantize(bits=4, target=_TARGET.runtime)),
        "4 bits everywhere": chosen(choices=(4, 8), evaluations=1),
        "exact, by noise": chosen(evaluations=1),
        "exact, by noise, verified": chosen(evaluations=20 if samples is None else 3),
        "exact, by the Hessian": chosen(evaluations=1, sensitivity="hessian"),
        "by the rule": chosen(method="rule"),
    }
    return _rows(task, models)


def rounding(samples: int | None) -> Rows:
    """4 bits without labels; 256 training images are held."""
    task = limited(cifar_task(20), samples)
    ways: dict[str, tuple[Any, ...]] = {"nearest": (), "adaround": ("adaround",), "brecq": ("brecq",)}
    steps = {name: paredown.Quantize(bits=4, refine=refine, target=_TARGET.runtime) for name, refine in ways.items()}
    return _rows(task, {name: paredown.quantize(task, step) for name, step in steps.items()})


def _rows(task: paredown.Task, models: dict[str, nn.Module]) -> Rows:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = exported(task.model, task, _TARGET, folder / "fp32.onnx")
        before = scored(task, whole, _TARGET)
        rows = [row("fp32", quality(before, 0.95))]
        for number, (case, model) in enumerate(models.items()):
            file = exported(model, task, _TARGET, folder / f"{number}.onnx")
            after = scored(task, file, _TARGET)
            ratio = file.stat().st_size / whole.stat().st_size
            rows += [row(case, quality(after, 0.95)), row(case, drop(before, after))]
            rows.append(row(case, Measurement("size_ratio", ratio, "x")))
    return rows
