"""A realistic report: a ResNet-20 on CIFAR-10 through four stages, one of them rolled back. The figures are made up."""

import dataclasses
import hashlib

from paredown.core.artifact import Artifact, Candidate
from paredown.core.budget import Budget
from paredown.core.measurement import Measurement
from paredown.core.recipe import Recipe
from paredown.core.report import Barrier, Parity, Report, Stage, Width
from paredown.core.steps import Distill, Prune, Quantize
from paredown.core.target import Target

SAMPLES = 5000
TARGET = Target("onnxruntime", batch=64, threads=1)
PRUNE = Recipe((Prune(ratio=0.25), Distill()))
DEEPER = Recipe((Prune(ratio=0.4), Distill()))
CUT_AGAIN = Recipe((Prune(ratio=0.2), Distill()))
INT8 = Recipe((Quantize(),))


def measured(metric: str, value: float, spread: float, unit: str = "", n: int = SAMPLES) -> Measurement:
    return Measurement(metric, value, unit, n, value - spread, value + spread, device=f"AVX2, {TARGET}")


def candidate(name: str, recipe: Recipe, top1: float, ms: float, ratio: float, size_bytes: int, macs: int) -> Candidate:
    """A candidate whose baseline has a top-1 of 0.9176, 38.6 ms and 1,093,410 bytes."""
    drop, small = 0.9176 - top1, name == "baseline"
    return Candidate(
        name=name,
        recipe=recipe,
        artifact=Artifact(
            f"{name.replace(' ', '-')}.onnx",
            TARGET,
            "int8" if "int8" in name else "fp32",
            size_bytes,
            hashlib.sha256(name.encode()).hexdigest(),
        ),
        quality=measured("top-1", top1, 0.0077),
        drop=Measurement("drop", 0.0, n=SAMPLES) if small else measured("drop", drop, 0.0042),
        latency=measured("latency_ms", ms, 0.4, "ms", n=100),
        latency_ratio=Measurement("latency_ratio", 1.0, "x", 100)
        if small
        else measured("latency_ratio", ratio, 0.012, "x", n=100),
        size_ratio=size_bytes / 1_093_410,
        macs=macs,
        parameters=macs // 150,
        memory=Measurement("memory_mb", 118.4 * ratio**0.2, "MB"),
        checkpoint=f"checkpoints/{name}",
    )


def stage(number: int, of: Candidate, kept: bool, reason: str, ratio: float, size_ratio: float) -> Stage:
    name, words = str(of.recipe.stages()[-1]), f"{'kept' if kept else 'rolled back'}: {reason}"
    change = measured("latency_ratio", ratio, 0.011, "x", n=100)
    return Stage(name, of.recipe, of, kept, words, change, size_ratio, 61.3 * number)


def widths() -> tuple[Width, ...]:
    """Every convolution of ResNet-20: residual widths cut a little, inner widths more, deep layers most."""
    rows = [Width("conv1", "out", 16, 12)]
    inner = {1: (12, 8, 8), 2: (24, 20, 16), 3: (40, 28, 20)}
    for layer, (full, residual) in {1: (16, 12), 2: (32, 28), 3: (64, 48)}.items():
        for block in range(3):
            rows.append(Width(f"layer{layer}.{block}.conv1", "out", full, inner[layer][block]))
            rows.append(Width(f"layer{layer}.{block}.conv2", "out", full, residual))
            rows.append(Width(f"layer{layer}.{block}.conv2", "in", full, inner[layer][block]))
    return (*rows, Width("linear", "out", 10, 10), Width("linear", "in", 64, 48))


def sample_report() -> Report:
    """The budget is met by prune + distill, prune + distill and int8; a deeper cut was rolled back."""
    baseline = candidate("baseline", Recipe(), 0.9176, 38.6, 1.0, 1_093_410, 40_810_000)
    first = candidate("prune 25 %", PRUNE, 0.9158, 31.9, 0.827, 801_220, 30_600_000)
    deeper = candidate("prune 55 %", PRUNE + DEEPER, 0.8962, 25.1, 0.652, 472_900, 18_400_000)
    second = candidate("prune 40 %", PRUNE + CUT_AGAIN, 0.9130, 28.4, 0.736, 640_118, 24_500_000)
    final = candidate("prune 40 % int8", PRUNE + CUT_AGAIN + INT8, 0.9126, 17.3, 0.449, 196_604, 24_500_000)
    final = dataclasses.replace(final, test_quality=measured("top-1", 0.9098, 0.0079), test_drop=measured("drop", 0.0036, 0.0041))
    baseline = dataclasses.replace(baseline, test_quality=measured("top-1", 0.9134, 0.0078))
    deep = "the drop may be as large as 2.56 points (upper bound at 95 %), and the budget allows 1.00"
    return Report(
        task="CifarResNet-20",
        metric="top-1",
        budget=Budget(max_drop=0.01, latency="0.6x", size="0.25x"),
        target=TARGET,
        met=True,
        binding=(),
        baseline=baseline,
        best=final,
        front=(baseline, first, second, final),
        stages=(
            stage(1, first, True, "latency and size got significantly better; the drop is at most 0.60 points", 0.827, 0.733),
            stage(2, deeper, False, deep, 0.788, 0.590),
            stage(3, second, True, "latency and size got significantly better; the drop is at most 0.88 points", 0.890, 0.799),
            stage(4, final, True, "latency and size got significantly better; the drop is at most 0.92 points", 0.610, 0.307),
        ),
        widths=widths(),
        parity=(
            *(Parity("baseline", batch, "max |difference| / max |y|", 4.1e-7 * batch, 1e-4) for batch in (1, 3, 64)),
            *(Parity("prune 40 % int8", batch, "relative L2", 0.0051 + batch * 1e-6, 0.02) for batch in (1, 3, 64)),
        ),
        barriers=(Barrier("linear", "resnet.py:42, in forward", "its output is the model's output: 10 classes"),),
        environment={
            "machine": "Intel Xeon, 2 cores, AVX2, no VNNI",
            "paredown": "0.1.0",
            "torch": "2.14.1",
            "onnxruntime": "1.32.0",
            "python": "3.11.9",
        },
        seed=0,
        seconds=784.2,
    )


def unmet_report() -> Report:
    """The same run under a budget that it misses on latency."""
    budget = Budget(max_drop="1.5%", latency="0.4x", size="0.25x")
    return dataclasses.replace(sample_report(), budget=budget, met=False, binding=("latency",))
