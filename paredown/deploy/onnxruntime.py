"""ONNX Runtime on the CPU, threads pinned, no spinning between calls: two sessions are timed interleaved in one process."""

import pathlib
from typing import Any

import numpy as np

from paredown.core.target import Target
from paredown.deploy.ports import Array, Port, bind, refused, unreadable

_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint64)": "uint64", "tensor(uint32)": "uint32", "tensor(uint16)": "uint16", "tensor(uint8)": "uint8",
}  # fmt: skip


class OnnxRuntimeSession:
    """See `session.Session`."""

    def __init__(self, session: Any, target: Target) -> None:
        self._session = session
        self.target = target
        self.inputs = tuple(Port(i.name, np.dtype(_TYPES[i.type]), _shape(i.shape)) for i in session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.inputs)

    def __call__(self, *arrays: Array, **named: Array) -> Array | tuple[Array, ...]:
        """Raises BatchError where the inputs aren't the file's, or where it can't run on them."""
        feed = bind(self.inputs, arrays, named)
        try:
            results = self._session.run(None, feed)
        except Exception as error:  # ONNX Runtime's own classes derive from Exception alone
            raise refused(feed, error) from error
        return results[0] if len(results) == 1 else tuple(results)


def options(target: Target) -> Any:
    """Session options: `threads` within an operator, one operator at a time, silent, no busy waiting after a call."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = target.threads
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    chosen.log_severity_level = 4
    chosen.add_session_config_entry("session.force_spinning_stop", "1")
    chosen.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # float, as torch; by default 8 bits
    return chosen


def open_session(path: pathlib.Path, target: Target) -> OnnxRuntimeSession:
    """Raises ArtifactError where the runtime refuses the file."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), options(target), providers=["CPUExecutionProvider"])
        return OnnxRuntimeSession(session, target)
    except Exception as error:  # ONNX Runtime's own classes derive from Exception alone
        raise unreadable(path, error) from error


def _shape(shape: list[int | str | None]) -> tuple[int | None, ...]:
    return tuple(length if isinstance(length, int) else None for length in shape)
