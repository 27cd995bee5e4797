"""Each of torchvision's classifiers in int8: exported and in parity with torch in both runtimes, or the reason why not."""

from typing import Any

import torch
from torch import nn

import paredown
from benchmarks.zoo.models import Entry, build, entries
from paredown.core.errors import ParedownError
from paredown.core.target import Runtime, Target
from paredown.task.batches import Inputs, batch_size

_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
Rows = list[dict[str, Any]]


def torchvision(samples: int | None) -> Rows:
    """One row a model and runtime. samples: how many models, evenly from the list."""
    models = [entry for entry in entries() if entry.source == "torchvision"]
    every = 1 if samples is None else max(len(models) // samples, 1)
    rows: Rows = []
    for entry in models[::every][: samples or len(models)]:
        for runtime in _RUNTIMES:
            rows.append({"case": f"{runtime} {entry.name}", **_tried(entry, Target(runtime, threads=1))})
            print(rows[-1], flush=True)
    return rows


def _tried(entry: Entry, target: Target) -> dict[str, Any]:
    """Whether it exports and agrees, and its layers on integer grids; else the reason. Random weights, random images."""
    from tempfile import TemporaryDirectory

    try:
        model, inputs = build(entry.source, entry.name)
        task = _task(model, inputs, entry.name)
        quantized = paredown.quantize(task, paredown.Quantize(target=target.runtime))
        with TemporaryDirectory() as folder:
            paredown.export(quantized, task, target=target, path=f"{folder}/model.onnx")
    except ParedownError as error:
        return {"ok": False, "reason": f"{type(error).__name__}: {error}"[:300]}
    bits = [row.weight_bits for row in paredown.layer_bits(quantized)]
    return {"ok": True, "layers": len(bits), "in_float": bits.count(32)}


def _task(model: nn.Module, inputs: Inputs, name: str) -> paredown.Task:
    batches = [(inputs, torch.zeros(batch_size(inputs), dtype=torch.int64))]
    return paredown.Task(model=model, example_inputs=inputs, train=batches, validation=batches, name=name)
