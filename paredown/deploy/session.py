"""A file as a callable in its runtime: numpy in, numpy out. Nothing of the file is unpickled or executed as code."""

import os
import pathlib
from typing import Protocol

import numpy as np

from paredown.core.errors import ArtifactError, TargetError
from paredown.core.target import Target
from paredown.deploy.ports import Array, Port, unreadable


class Session(Protocol):
    """A loaded file. Call it with arrays, in the order of `input_names` or by name.

    It returns one array, or a tuple in the order of `output_names` where there are several.
    """

    target: Target
    inputs: tuple[Port, ...]
    output_names: tuple[str, ...]

    @property
    def input_names(self) -> tuple[str, ...]: ...

    def __call__(self, *arrays: Array, **named: Array) -> Array | tuple[Array, ...]: ...


def load(path: str | pathlib.Path, target: Target | str | None = None) -> Session:
    """The file in its runtime, threads pinned to the target's.

    target: None takes what stands in the file's metadata (a file that isn't ours: ONNX Runtime with the defaults).
    Raises ArtifactError where the file is missing, corrupt or not ONNX; MissingExtraError where its runtime isn't installed.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ArtifactError("the file must exist", got=str(file), remedy="check the path; `paredown.export` writes one")
    if file.stat().st_size == 0:
        raise ArtifactError("the file must hold an ONNX model", got=f"{file.name}, empty", remedy="export it again")
    target = recorded_target(file) if target is None else Target.of(target)
    if target.runtime == "openvino":
        from paredown.deploy import openvino

        return openvino.open_session(file, target)
    from paredown.deploy import onnxruntime

    return onnxruntime.open_session(file, target)


def recorded(path: str | pathlib.Path) -> dict[str, str]:
    """What `export` wrote into a file: version, runtime, batch, threads, precision; {} for a file that isn't ours."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own class for it differs between its releases
        raise unreadable(pathlib.Path(path), error) from error
    prefix = "paredown."
    return {e.key.removeprefix(prefix): e.value for e in model.metadata_props if e.key.startswith(prefix)}


def recorded_target(path: str | pathlib.Path) -> Target:
    """The target that a file was exported for; threads at most what this machine has."""
    data, default = recorded(path), Target()
    try:
        batch, threads = (int(data.get(key, getattr(default, key))) for key in ("batch", "threads"))
        return Target(data.get("runtime", default.runtime), batch, min(threads, os.cpu_count() or 1))  # type: ignore[arg-type]  # checked by Target
    except (ValueError, TargetError) as error:
        raise unreadable(pathlib.Path(path), error) from error


def inputs_for(session: Session, batch: int, *, seed: int = 0) -> dict[str, Array]:
    """Random inputs of a session's types and shapes: normal floats, integers 0 and 1, `batch` on every dynamic dimension 0.
    Other dynamic dimensions get 8.
    """
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for port in session.inputs:
        shape = tuple(length or (batch if index == 0 else 8) for index, length in enumerate(port.shape))
        floating = np.issubdtype(port.dtype, np.floating)
        made[port.name] = (random.standard_normal(shape) if floating else random.integers(0, 2, shape)).astype(port.dtype)
    return made
