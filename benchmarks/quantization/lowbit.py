"""ResNet-20 below 8 bits, activations in 8: trained, mixed, and rounded with care; top-1 of the file over the test images."""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from torch import nn

import paredown
from benchmarks.cifar import recovered
from benchmarks.quantization.convnets import exported, limited, scored
from benchmarks.quantization.parts import Parts, Rows
from benchmarks.record import row
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.measurement import Measurement
from paredown.core.target import Target
from paredown.measure.quality import drop, quality

_TARGET = Target("onnxruntime", batch=64, threads=1)
Model = Callable[[], nn.Module]


def trained(samples: int | None) -> Parts:
    """Weights of 4 bits, every scale trained, three epochs of distillation; a few steps where `samples` is given."""
    task = limited(cifar_task(20), samples)
    effort = "3 epochs" if samples is None else "10 steps"
    recovery = paredown.Distill(
        training=paredown.Training(effort=paredown.Effort.parse(effort), learning_rate=5e-3), recalibrate=False
    )
    step = paredown.Quantize(bits=4, scales="lsq", target=_TARGET.runtime)
    if samples is not None:
        tuned = paredown.distill(task, recovery, model=paredown.quantize(task, step))
        return {"lsq": lambda: _rows(task, {"4 bits, lsq": lambda: tuned})}

    def student(seed: int) -> Model:  # kept under runs/bench
        return lambda: recovered(task, paredown.Recipe((step, recovery)), seed)

    untrained = dataclasses.replace(step, scales="fixed")
    first = {"4 bits, not trained": lambda: paredown.quantize(task, untrained)}
    students = {f"4 bits, lsq, seed {seed}": student(seed) for seed in (0, 1, 2)}
    each = {name: functools.partial(_against, task, first, {name: made}) for name, made in students.items()}
    return {"4 bits, not trained": lambda: _rows(task, first), **each}


def mixed(samples: int | None) -> Parts:
    """4 bits on average, without training. `evaluations`: with the local search on validation images, and without. Then 0.4x
    the bit operations of 8 and 8 bits, by weights alone and by what layers read too.
    """
    task = limited(cifar_task(20), samples)

    def chosen(**fields: Any) -> Model:
        wanted = paredown.MixedBits(**({"average": 4} if "bops" not in fields else {}) | fields)
        return lambda: paredown.quantize(task, paredown.Quantize(bits=wanted, target=_TARGET.runtime))

    verified = 20 if samples is None else 3
    uniform = {"4 bits everywhere": chosen(choices=(4, 8), evaluations=1)}
    ways: dict[str, Model] = {
        "4 bits everywhere but at the edges": lambda: paredown.quantize(task, paredown.Quantize(bits=4, target=_TARGET.runtime)),
        "exact, by noise": chosen(evaluations=1, sensitivity="noise"),
        "exact, by the Hessian": chosen(evaluations=1, sensitivity="hessian"),
        "exact, by the default, verified": chosen(evaluations=verified),
        "by the rule": chosen(method="rule"),
    }
    first, second = "0.4x bit operations, weights alone", "0.4x bit operations, weights and activations"
    by_operations = {
        first: chosen(bops=0.4, evaluations=verified),
        second: chosen(bops=0.4, activations=(4, 8), evaluations=verified),
    }
    average = {name: functools.partial(_against, task, uniform, {name: way}) for name, way in ways.items()}
    return {"uniform": lambda: _rows(task, uniform), **average, "operations": lambda: _rows(task, by_operations)}


def rounding(samples: int | None) -> Parts:
    """4 bits without labels; 256 training images are held."""
    task = limited(cifar_task(20), samples)

    def rounded(*refine: Any) -> Model:
        return lambda: paredown.quantize(task, paredown.Quantize(bits=4, refine=refine, target=_TARGET.runtime))

    ways = {"nearest": rounded(), "adaround": rounded("adaround"), "brecq": rounded("brecq")}
    return {"all": lambda: _rows(task, ways)}


def _against(task: paredown.Task, first: dict[str, Model], models: dict[str, Model]) -> Rows:
    """As `_rows`, of the models beside the first, without its own rows: for parts that are kept one by one."""
    return [each for each in _rows(task, {**first, **models}) if each["case"] not in ("fp32", *first)]


def _rows(task: paredown.Task, models: dict[str, Model]) -> Rows:
    """Each beside fp32, and beside the first of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = exported(task.model, task, _TARGET, folder / "fp32.onnx")
        before = scored(task, whole, _TARGET)
        rows, first = [row("fp32", quality(before, 0.95))], None
        for number, (case, model) in enumerate(models.items()):
            file = exported(model(), task, _TARGET, folder / f"{number}.onnx")
            after = scored(task, file, _TARGET)
            ratio = file.stat().st_size / whole.stat().st_size
            rows += [row(case, quality(after, 0.95)), row(case, drop(before, after))]
            rows.append(row(case, Measurement("size_ratio", ratio, "x")))
            if first is not None:
                rows.append(row(f"{case} against {next(iter(models))}", drop(first, after)))
            first = after if first is None else first
    return rows
