"""One file against another, without a task: paired latency, bytes, and how far their outputs are apart on random inputs."""

from pathlib import Path
from typing import Any

import numpy as np

from paredown.core.report import Comparison
from paredown.core.target import Target
from paredown.deploy.session import Session, inputs_for, load
from paredown.measure.cost import size_bytes
from paredown.measure.latency import paired_latency

Array = np.ndarray[Any, Any]


def compare_files(file: Path, against: Path, *, runtime: str | None = None, batch: int = 1, threads: int = 1, pairs: int = 100) -> Comparison:
    """`file` held against `against` in one process; runtime None: the one that `file` was made for.

    Raises ArtifactError where a file is no model, or where the two don't take the same inputs.
    """
    target = Target.of(runtime) if runtime is not None else load(file).target
    target = Target(target.runtime, batch, threads)
    sessions = load(file, target), load(against, target)
    arrays = inputs_for(sessions[1], batch, seed=0)
    outputs = [_outputs(session, arrays) for session in sessions]
    before, after = (_runner(session, arrays) for session in reversed(sessions))
    latency = paired_latency(before, after, pairs=pairs, device=str(target))
    return Comparison(
        file=file.name,
        against=against.name,
        target=target,
        latency=latency.b,
        latency_against=latency.a,
        latency_ratio=latency.ratio,
        size_bytes=size_bytes(file),
        size_bytes_against=size_bytes(against),
        difference=_difference(*outputs),
        agreement=_agreement(*outputs),
    )
