"""ResNet-20 on CIFAR-10: int8 alone in both runtimes, and pruning to half of the MACs with three epochs of recovery.

    python -m benchmarks.resnet20            both, about 40 minutes on two cores
    python -m benchmarks.resnet20 int8       the first alone, about 3 minutes
    python -m benchmarks.resnet20 prune      the second alone

Peers on the same kind of machine, batch 64 (measured once): ONNX Runtime's quantizer 91.76, 0.32x bytes, 0.58x
latency; NNCF 91.74, 0.43x bytes, 0.53x latency in OpenVINO; Torch-Pruning to 0.47x MACs with three epochs 88.05.
"""

import pathlib
import sys
import tempfile
from typing import Any

import paredown
from benchmarks.cifar import official_test, seeds
from benchmarks.record import row, write
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.measurement import Measurement
from paredown.core.target import Runtime, Target
from paredown.measure.quality import drop, quality
from paredown.pipeline.evaluate import compare_latency

_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
# The learning rate was chosen on the validation half; widths are multiples of 4, since no width of this net exceeds 64.
_HALF = paredown.Recipe(
    (
        paredown.Prune(ratio=0.5, widths=paredown.Widths(round_to=4)),
        paredown.Distill(training=paredown.Training(learning_rate=0.05)),
    )
)


def int8(task: paredown.Task) -> list[dict[str, Any]]:
    """The int8 file against the fp32 file, over all 10,000 official test images, in both runtimes."""
    rows: list[dict[str, Any]] = []
    for runtime in _RUNTIMES:
        target = Target(runtime, batch=64, threads=2)  # as the peers were measured
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
    """Half of the MACs removed, three epochs of distillation."""
    return seeds(task, "prune 0.5 + distill 3 epochs", _HALF)


def main(which: str = "all") -> None:
    task = cifar_task()
    if which in ("all", "int8"):
        print(write("resnet20_int8.csv", int8(task), other_machines=True))
    if which in ("all", "prune"):
        print(write("resnet20_prune.csv", prune(task), other_machines=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
