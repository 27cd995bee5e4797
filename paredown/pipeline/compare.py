"""One file against another, without a task: paired latency, bytes, and how far their outputs are apart on random inputs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paredown.core.errors import ArtifactError
from paredown.core.report import Comparison
from paredown.core.target import Target
from paredown.deploy.session import inputs_for, load
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
    if sessions[0].input_names != sessions[1].input_names:
        names = " and ".join(", ".join(session.input_names) for session in sessions)
        raise ArtifactError("the two files must take the same inputs", got=names, remedy="compare files made from one model")
    inputs = inputs_for(sessions[1], batch)
    ours, theirs = (_leaves(session(**inputs)) for session in sessions)
    after, before = (functools.partial(_opened, path, target, inputs) for path in (file, against))
    latency = paired_latency(before, after, pairs=pairs, device=str(target))
    comparable = [one.shape for one in ours] == [other.shape for other in theirs]
    return Comparison(
        file=file.name,
        against=against.name,
        target=target,
        latency=latency.b,
        latency_against=latency.a,
        latency_ratio=latency.ratio,
        size_bytes=size_bytes(file),
        size_bytes_against=size_bytes(against),
        difference=_difference(ours, theirs) if comparable else None,
        agreement=_agreement(ours[0], theirs[0]) if comparable else None,
    )


def _opened(path: Path, target: Target, inputs: dict[str, Array]) -> Callable[[], object]:
    """The file loaded afresh, as what is timed."""
    return functools.partial(load(path, target), **inputs)


def _leaves(outputs: Array | tuple[Array, ...]) -> tuple[Array, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _difference(ours: tuple[Array, ...], theirs: tuple[Array, ...]) -> float:
    """The largest |difference| over the largest |value|, over all outputs."""
    apart = max(float(np.abs(one - other).max(initial=0)) for one, other in zip(ours, theirs, strict=True))
    size = max(float(np.abs(other).max(initial=0)) for other in theirs)
    return apart / size if size > 0 else apart


def _agreement(ours: Array, theirs: Array) -> float | None:
    """Share of samples whose largest output stands at the same place; None where the output is no (batch, classes, ...)."""
    if ours.ndim < 2 or ours.shape[1] < 2:
        return None
    return float((ours.argmax(1) == theirs.argmax(1)).mean())
