"""Where products of bytes saturate (no VNNI): weights of 7 bits, or of 8 unsigned bits? Time and top-1 of both in ONNX Runtime.

Two products of u8 and s8 are summed in 16 bits there, which weights of [-63, 63] can't overflow; u8 and u8 are summed in 32 bits
by slower instructions, and weights keep their 8 bits, each moved up by 128. Both hold the same grid apart from that, so what
`Weights(range="auto")` does (`paredown.pipeline.steps.reduces_weights`) rests on these rows.
"""

import functools
import pathlib
import tempfile

import numpy as np
import onnx
from onnx import numpy_helper

import paredown
from benchmarks.quantization.convnets import limited
from benchmarks.quantization.parts import Parts, Rows
from benchmarks.record import row
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.precision import WeightRange
from paredown.core.target import Target
from paredown.deploy.onnx import export_onnx
from paredown.measure.quality import drop, quality
from paredown.pipeline.evaluate import compare_latency, score_file


def both(samples: int | None) -> Parts:
    """ResNet-20, for each batch size."""
    task = limited(cifar_task(20), samples)
    return {f"batch {size}": functools.partial(_both, task, Target(batch=size, threads=1)) for size in (1, 64)}


def _both(task: paredown.Task, target: Target) -> Rows:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = {"7 bits": _exported(task, target, folder, "reduced"), "8 bits": _exported(task, target, folder, "full")}
        files["8 bits, unsigned"] = _unsigned(files["8 bits"], folder / "unsigned.onnx")
        scores = {case: score_file(task, file, target, "test") for case, file in files.items()}
        rows = []
        for case, file in files.items():
            rows.append(row(case, quality(scores[case]), batch=target.batch))
            if case != "7 bits":
                rows.append(row(f"{case}, against 7 bits", drop(scores["7 bits"], scores[case]), batch=target.batch))
                ratio = compare_latency(task, files["7 bits"], file, target, pairs=100).ratio
                rows.append(row(f"{case}, against 7 bits", ratio, batch=target.batch))
        return rows


def _exported(task: paredown.Task, target: Target, folder: pathlib.Path, kept: WeightRange) -> pathlib.Path:
    """Unchecked: that the file of full signed bytes computes something else is what is shown here."""
    model = paredown.quantize(task, paredown.Quantize(weights=paredown.Weights(range=kept)), target=target)
    export_onnx(model, task.inputs, folder / f"{kept}.onnx", target=target)
    return folder / f"{kept}.onnx"


def _unsigned(file: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """The same file, its signed weights stored as unsigned ones with a zero point of 128."""
    model = onnx.load(file)
    known = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        held = known.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if held is None or held.data_type != onnx.TensorProto.INT8:
            continue
        values, scales = numpy_helper.to_array(held).astype(np.int16), numpy_helper.to_array(known[node.input[1]])
        held.CopyFrom(numpy_helper.from_array((values + 128).astype(np.uint8), held.name))
        zero = numpy_helper.from_array(np.full(scales.shape, 128, np.uint8), f"{held.name}_zero")
        model.graph.initializer.append(zero)
        kept = list(node.input[:2])
        del node.input[:]
        node.input.extend([*kept, zero.name])
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
