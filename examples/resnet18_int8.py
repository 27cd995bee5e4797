"""int8 three ways on torchvision's ResNet-18: linear, asymmetric, mixed precision; each fine-tuned afterwards.

    python examples/resnet18_int8.py            some ten minutes on two cores

The model is trained first, on CIFAR-10 from ../shared/data or on generated patterns where that is absent. Then, as everywhere:
prepare (the graph is traced, batch norms folded, quantizers put where the runtime works in int8), calibrate (on training images),
convert (a file whose layers run on integers). What is printed is measured on the files, in ONNX Runtime, on held-out images.
"""

import pathlib
import sys
import tempfile

import torch
from resnet18_sensitivity import data
from torch import nn
from torchvision.models import resnet18

import paredown
from paredown.core.target import Target
from paredown.pipeline.evaluate import compare_latency, score_file

IMAGES, TRAINING, FINE_TUNING = 12_000, "4 epochs", "30 steps"
RUNTIME = "onnxruntime"
VARIANTS = {
    "linear": paredown.Quantize(target=RUNTIME),
    "asymmetric": paredown.Quantize(target=RUNTIME, weights=paredown.Weights(symmetric=False)),
    "mixed, 4 bits on average": paredown.Quantize(target=RUNTIME, bits=paredown.MixedBits(average=4, evaluations=1)),
    "mixed by the rule": paredown.Quantize(target=RUNTIME, bits=paredown.MixedBits(average=4, method="rule")),
}


def trained(images: int, effort: str) -> paredown.Task:
    """The task of the trained model. hard_weight=1 is plain training on the labels."""
    train, validation = data(images)
    torch.manual_seed(0)

    def task(model: nn.Module) -> paredown.Task:
        return paredown.Task(
            model=model, example_inputs=(train[0][0][:2],), train=train, validation=validation, name="ResNet-18 on CIFAR-10"
        )

    plain = paredown.Distill(
        hard_weight=1.0, training=paredown.Training(effort=paredown.Effort.parse(effort), learning_rate=0.05)
    )
    return task(paredown.distill(task(resnet18(num_classes=10)), plain))


def measured(name: str, model: nn.Module, task: paredown.Task, folder: pathlib.Path) -> None:
    """Convert: writes the file, checks it against torch, and prints its top-1, bytes and latency beside fp32's."""
    target, whole, file = Target(RUNTIME, batch=16), folder / "fp32.onnx", folder / "model.onnx"
    if not whole.exists():
        paredown.export(task.model, task, target=target, path=whole)
    artifact = paredown.export(model, task, target=target, path=file)
    top1 = score_file(task, file, target, "validation").value
    latency = compare_latency(task, whole, file, target).ratio.value
    ratio = artifact.size_bytes / whole.stat().st_size
    print(f"  {name:34s} {100 * top1:5.1f} %   {ratio:5.3f}x bytes   {latency:5.2f}x latency   {artifact.precision}")


def bits(model: nn.Module) -> str:
    """How many layers have how many bits."""
    rows = [row.weight_bits for row in paredown.layer_bits(model)]
    return ", ".join(f"{rows.count(width)} layers in {width}" for width in sorted(set(rows)))


def main(images: int = IMAGES, training: str = TRAINING, fine_tuning: str = FINE_TUNING) -> None:
    task = trained(images, training)
    recovery = paredown.Distill(
        training=paredown.Training(effort=paredown.Effort.parse(fine_tuning), learning_rate=2e-3), recalibrate=False
    )
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        measured("fp32", task.model, task, folder)
        for variant, step in VARIANTS.items():
            quantized = paredown.quantize(task, step)  # prepare and calibrate
            measured(variant, quantized, task, folder)
            tuned = paredown.distill(task, recovery, model=quantized)
            measured(f"{variant}, fine-tuned", tuned, task, folder)
            print(f"    {bits(tuned)}")


if __name__ == "__main__":
    main(*(kind(given) for kind, given in zip((int, str, str), sys.argv[1:], strict=False)))
