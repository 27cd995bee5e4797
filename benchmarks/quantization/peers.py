"""The peers: int8 files of ONNX Runtime's own quantizer and of NNCF, from the same fp32 file and the same calibration images."""

import importlib.util
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx

import paredown
from paredown.core.target import Runtime
from paredown.deploy.capabilities import has_vnni
from paredown.deploy.session import load
from paredown.pipeline.evaluate import arrays_of
from paredown.task.batches import arranged

CALIBRATION = 1024  # samples; what `Quantize` takes by default
_SMALL = 64  # samples fed at once
Feed = dict[str, np.ndarray[Any, Any]]


def peers(runtime: Runtime) -> dict[str, Callable[[paredown.Task, pathlib.Path, pathlib.Path], None]]:
    """Name -> (task, fp32 file, file to write). ONNX Runtime's quantizer is made for that runtime alone."""
    found: dict[str, Callable[[paredown.Task, pathlib.Path, pathlib.Path], None]] = {}
    if runtime == "onnxruntime":
        found["ONNX Runtime's quantizer"] = onnxruntime_int8
    if importlib.util.find_spec("nncf"):
        found["NNCF"] = nncf_int8
    return found


def feeds(task: paredown.Task, whole: pathlib.Path) -> Iterator[Feed]:
    """Batches of the training split as the file takes them, until CALIBRATION samples were given."""
    names, seen = load(whole, "onnxruntime").input_names, 0
    for inputs, _ in task.train:
        arrays = arrays_of(arranged(inputs, task.inputs))
        for start in range(0, len(arrays[0]), _SMALL):
            yield {name: array[start : start + _SMALL] for name, array in zip(names, arrays, strict=True)}
        seen += len(arrays[0])
        if seen >= CALIBRATION:
            return


def onnxruntime_int8(task: paredown.Task, whole: pathlib.Path, file: pathlib.Path) -> None:
    """Static QDQ, per channel, after its own preprocessing; 7-bit weights where there is no VNNI, as its documentation says."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self) -> None:
            self.feeds = feeds(task, whole)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    prepared = file.with_suffix(".prepared.onnx")
    quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(file),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not has_vnni(),
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    prepared.unlink()


def onnxruntime_dynamic(whole: pathlib.Path, file: pathlib.Path) -> None:
    """Weights of linear layers and embeddings in int8 per channel, activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_suffix(".prepared.onnx")
    quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(file), per_channel=True, reduce_range=not has_vnni(), weight_type=QuantType.QInt8)
    prepared.unlink()


def nncf_int8(task: paredown.Task, whole: pathlib.Path, file: pathlib.Path) -> None:
    """Its defaults on an ONNX model."""
    import nncf

    batches = list(feeds(task, whole))
    model = nncf.quantize(onnx.load(str(whole)), nncf.Dataset(batches), subset_size=len(batches))
    onnx.save(model, str(file))
