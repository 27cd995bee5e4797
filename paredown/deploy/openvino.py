"""OpenVINO on the CPU: one request at a time, threads pinned, inference in float32 where the file is float32.

Left to itself OpenVINO computes in bfloat16 or float16 on machines that have it, and on those with VNNI it rounds what linear
layers with stored integer weights read to 8 bits: not what was compared with the torch model.
"""

import pathlib
from typing import Any

import numpy as np

from paredown.core.errors import MissingExtraError
from paredown.core.target import Target
from paredown.deploy.ports import Array, Port, bind, refused, unreadable


class OpenVinoSession:
    """See `session.Session`."""

    def __init__(self, compiled: Any, target: Target) -> None:
        self._request = compiled.create_infer_request()
        self.target = target
        self.inputs = tuple(
            Port(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), _shape(port.get_partial_shape()))
            for port in compiled.inputs
        )
        self.output_names = tuple(port.get_any_name() for port in compiled.outputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.inputs)

    def __call__(self, *arrays: Array, **named: Array) -> Array | tuple[Array, ...]:
        """Raises BatchError where the inputs aren't the file's, or where it can't run on them."""
        feed = bind(self.inputs, arrays, named)
        try:
            results = tuple(self._request.infer(feed, share_inputs=True).values())  # outputs are copies
        except RuntimeError as error:
            raise refused(feed, error) from error
        return results[0] if len(results) == 1 else results


def open_session(path: pathlib.Path, target: Target) -> OpenVinoSession:
    """Raises what `compiled` raises."""
    return OpenVinoSession(compiled(path, target), target)


def compiled(path: pathlib.Path, target: Target) -> Any:
    """OpenVINO's compiled model. Raises ArtifactError where it refuses the file, MissingExtraError where it isn't installed."""
    openvino = require_openvino()
    settings = {
        "INFERENCE_NUM_THREADS": target.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    try:
        frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")  # read_model would guess other formats
        model = frontend.convert(frontend.load(str(path)))
        return openvino.Core().compile_model(model, "CPU", settings)
    except Exception as error:  # OpenVINO's frontend errors derive from Exception alone
        raise unreadable(path, error) from error


def require_openvino() -> Any:
    """The openvino package."""
    try:
        import openvino
        import openvino.frontend
    except ImportError:
        raise MissingExtraError(
            "target openvino needs the package openvino", got="not installed", remedy="run pip install 'paredown[openvino]'"
        ) from None
    return openvino


def _shape(shape: Any) -> tuple[int | None, ...]:
    return tuple(None if length.is_dynamic else length.get_length() for length in shape)
