"""The inputs of a file, and what is said when arrays don't fit them or a runtime refuses the file."""

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from paredown.core.errors import ArtifactError, BatchError

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Port:
    """An input of a file. shape: None where a dimension is dynamic."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


def unreadable(path: pathlib.Path, error: BaseException) -> ArtifactError:
    """The error for a file that a runtime refuses: its name (no folder) and the runtime's first line."""
    reason = said(error).replace(str(path), path.name)
    if unknown := re.findall(r"^-- (\S+?)-\d+ with a message", str(error), re.MULTILINE):
        got = ", ".join(dict.fromkeys(unknown))
        return ArtifactError("the runtime must know every operator of a file", got=got, remedy="export for another runtime")
    return ArtifactError("the file must be a complete ONNX model", got=f"{path.name} ({reason})", remedy="export it again")


def refused(feed: Mapping[str, Array], error: BaseException) -> BatchError:
    """The error for inputs that a runtime can't run a file on."""
    shapes = ", ".join(f"{name} {array.shape}" for name, array in feed.items())
    return BatchError(
        "the file must run on these inputs", got=f"{shapes} ({said(error)})", remedy="compare with the example inputs"
    )


def said(error: BaseException) -> str:
    """What a runtime said of a failure, in one line, without the places in its own sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    return telling[0][:200] if telling else type(error).__name__


def bind(inputs: tuple[Port, ...], arrays: tuple[Array, ...], named: Mapping[str, Array]) -> dict[str, Array]:
    """{name: contiguous array}. Raises BatchError where names, types or shapes aren't the file's."""
    names = [port.name for port in inputs]
    given = dict(zip(names, arrays, strict=False))
    if len(arrays) > len(names) or set(given) & set(named) or {*given, *named} != set(names):
        got = f"{len(arrays)} positional" + (f" and {', '.join(named)}" if named else "")
        raise BatchError(f"the file takes {', '.join(names)}", got=got, remedy="pass each once, in order or by name")
    given |= named
    for port in inputs:
        _check(port, given[port.name])
    _check_batch(inputs, given)
    return {name: np.asarray(given[name], order="C") for name in names}  # ascontiguousarray would make 1 dimension of none


def _check(port: Port, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise BatchError(
            f"input {port.name} must be a numpy array", got=type(array).__name__, remedy="convert a tensor by .numpy()"
        )
    if array.dtype != port.dtype:
        raise BatchError(
            f"input {port.name} must be of type {port.dtype}", got=str(array.dtype), remedy=f'write .astype("{port.dtype}")'
        )
    fits = array.ndim == len(port.shape) and all(
        want is None or want == got for want, got in zip(port.shape, array.shape, strict=True)
    )
    if not fits:
        want = ", ".join("any" if length is None else str(length) for length in port.shape)
        remedy = "the batch is dimension 0; other dimensions that vary are named by Task(dynamic=...)"
        raise BatchError(f"input {port.name} must have the shape ({want})", got=array.shape, remedy=remedy)


def _check_batch(inputs: tuple[Port, ...], given: Mapping[str, Array]) -> None:
    sizes = {given[port.name].shape[0] for port in inputs if port.shape and port.shape[0] is None}
    if len(sizes) > 1:
        raise BatchError("all inputs must have the same batch size", got=sorted(sizes), remedy="cut them to one length")
    if 0 in sizes:
        raise BatchError("a batch must hold at least one sample", got=0, remedy="skip empty batches")
