"""One file against another, without a task: paired latency, bytes, and how far their outputs are apart on random inputs."""

from pathlib import Path
from typing import Any

import numpy as np

from paredown.core.errors import ArtifactError
from paredown.core.report import Comparison
from paredown.core.target import Target
from paredown.deploy.ports import Port
from paredown.deploy.session import Session, inputs_for, load
from paredown.deploy.stopwatch import rounds
from paredown.measure.cost import size_bytes
from paredown.measure.latency import paired_latency

Array = np.ndarray[Any, Any]


def compare_files(
    file: Path, against: Path, *, runtime: str | None = None, batch: int = 1, threads: int = 1, pairs: int = 100
) -> Comparison:
    """`file` held against `against` in one process; runtime None: the one that `file` was made for.

    Raises ArtifactError where a file is no model, or where the two don't take the same inputs.
    """
    target = Target.of(runtime) if runtime is not None else load(file).target
    target = Target.of(Target(target.runtime, batch, threads))
    sessions = load(file, target), load(against, target)
    _check_inputs(*sessions)
    for session in sessions:
        _check_batch(session, batch)
    inputs = inputs_for(sessions[1], batch)
    ours, theirs = (_leaves(session(**inputs)) for session in sessions)
    with rounds(against, file, target, [inputs[name] for name in sessions[1].input_names]) as timed:
        latency = paired_latency(timed, pairs=pairs, device=str(target))
    comparable = [one.shape for one in ours] == [other.shape for other in theirs]
    names = _names(file, against)
    return Comparison(
        file=names[0],
        against=names[1],
        target=target,
        latency=latency.b,
        latency_against=latency.a,
        latency_ratio=latency.ratio,
        size_bytes=size_bytes(file),
        size_bytes_against=size_bytes(against),
        difference=_difference(ours, theirs) if comparable else None,
        agreement=_agreement(ours[0], theirs[0]) if comparable else None,
    )


def _check_inputs(one: Session, other: Session) -> None:
    """Raises ArtifactError where the inputs differ in name, type or shape, a dynamic dimension aside."""
    pairs = list(zip(one.inputs, other.inputs, strict=False))
    same = len(one.inputs) == len(other.inputs) and all(
        (a.name, a.dtype, len(a.shape)) == (b.name, b.dtype, len(b.shape))
        and all(None in lengths or lengths[0] == lengths[1] for lengths in zip(a.shape, b.shape, strict=True))
        for a, b in pairs
    )
    if not same:
        found = " and ".join(", ".join(_port(port) for port in session.inputs) or "none" for session in (one, other))
        raise ArtifactError("the two files must take the same inputs", got=found, remedy="compare files made from one model")


def _port(port: Port) -> str:
    """ "x float32 (any, 3, 32, 32)"."""
    return f"{port.name} {port.dtype} ({', '.join('any' if length is None else str(length) for length in port.shape)})"


def _names(file: Path, against: Path) -> tuple[str, str]:
    """What tells the two apart: their names, with the folder where these are one and the same."""
    if file.name != against.name:
        return file.name, against.name
    return f"{file.resolve().parent.name}/{file.name}", f"{against.resolve().parent.name}/{against.name}"


def _check_batch(session: Session, batch: int) -> None:
    """Raises ArtifactError for a file whose batch is fixed at another size: its latency isn't that of `batch` samples."""
    first = [port.shape[0] for port in session.inputs if port.shape]
    if first and None not in first and batch not in first:
        raise ArtifactError(
            f"the files must take batches of {batch}", got=f"a batch fixed at {first[0]}", remedy=f"pass --batch {first[0]}"
        )


def _leaves(outputs: Array | tuple[Array, ...]) -> tuple[Array, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _difference(ours: tuple[Array, ...], theirs: tuple[Array, ...]) -> float:
    """The largest |difference| over the largest |value|, over all outputs."""
    pairs = [(one.astype(np.float64), other.astype(np.float64)) for one, other in zip(ours, theirs, strict=True)]
    apart = max(float(np.abs(one - other).max(initial=0)) for one, other in pairs)
    size = max(float(np.abs(other).max(initial=0)) for _, other in pairs)
    return apart / size if size > 0 else apart


def _agreement(ours: Array, theirs: Array) -> float | None:
    """Share of samples whose largest output stands at the same place; None where the output is no (batch, classes, ...)."""
    if ours.ndim < 2 or ours.shape[1] < 2:
        return None
    return float((ours.argmax(1) == theirs.argmax(1)).mean())
