"""Each of torchvision's classifiers in int8: exported and in parity with torch in both runtimes, or the reason why not.

The rows hold on any machine, so the table grows over as many runs as it takes.
"""

import functools
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

import paredown
from benchmarks.quantization.parts import Parts, Rows
from benchmarks.zoo.models import build, entries
from paredown.core.errors import ParedownError
from paredown.core.target import Runtime, Target
from paredown.task.batches import batch_size

_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
_GIGABYTES, _SECONDS = 14, 1200  # that the process of one model may take, of memory and of CPU


def torchvision(samples: int | None) -> Parts:
    """One row a model and runtime. samples: how many models, evenly from the list."""
    names = [entry.name for entry in entries() if entry.source == "torchvision"]
    every = 1 if samples is None else max(len(names) // samples, 1)
    chosen = names[::every][: samples or len(names)]
    return {f"{runtime} {name}": functools.partial(_row, name, runtime) for name in chosen for runtime in _RUNTIMES}


def _row(name: str, runtime: Runtime) -> Rows:
    """In a process of its own, whose end is a reason too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            found = pool.submit(tried, name, runtime).result()
        except BrokenProcessPool:
            found = {"ok": False, "reason": f"the process ended: more than {_GIGABYTES} GB or {_SECONDS} s of CPU"}
    return [{"case": f"{runtime} {name}", **found}]


def tried(name: str, runtime: Runtime) -> dict[str, Any]:
    """Whether it exports and agrees, and its layers on integer grids; else the reason. Random weights, random images."""
    from tempfile import TemporaryDirectory

    resource.setrlimit(resource.RLIMIT_AS, (_GIGABYTES << 30, _GIGABYTES << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    target = Target(runtime, threads=1)
    try:
        model, inputs = build("torchvision", name)
        batches = [(inputs, torch.zeros(batch_size(inputs), dtype=torch.int64))]
        example = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
        task = paredown.Task(model=model, example_inputs=example, train=batches, validation=batches, name=name)
        quantized = paredown.quantize(task, paredown.Quantize(target=runtime))
        with TemporaryDirectory() as folder:
            paredown.export(quantized, task, target=target, path=f"{folder}/model.onnx")
    except (ParedownError, MemoryError, RuntimeError) as error:
        return {"ok": False, "reason": f"{type(error).__name__}: {error}"[:300]}
    bits = [row.weight_bits for row in paredown.layer_bits(quantized)]
    return {"ok": True, "layers": len(bits), "in_float": bits.count(32)}
