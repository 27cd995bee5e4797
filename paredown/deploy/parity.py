"""A file against the torch model that it was made from, in the runtime where it will run.

Computed in fp32, whatever weights are stored in: max |difference| / max |y| <= 1e-4.
Integers: ||difference|| / ||y|| <= 2 %, against the simulation in torch.
"""

import pathlib
from typing import Any

import numpy as np
import torch
from torch import nn

from paredown.core.errors import BatchError, ParityError
from paredown.core.report import Parity
from paredown.core.target import Target
from paredown.deploy.divergence import first_divergence
from paredown.deploy.ports import Array
from paredown.deploy.session import Session, load
from paredown.graph.trace import Dynamic
from paredown.task.batches import Inputs, apply_tensors, batch_size, call, tensors

_FLOAT, _INTEGER = ("max |difference| / max |y|", 1e-4), ("relative L2", 0.02)


def tolerance_of(precision: str) -> tuple[str, float]:
    """What is compared, and how much it may be, by an artifact's precision."""
    return _INTEGER if precision.startswith("int") else _FLOAT


def check_parity(
    model: nn.Module,
    inputs: Inputs,
    path: str | pathlib.Path,
    target: Target | str,
    *,
    dynamic: Dynamic | None = None,
    precision: str,
) -> tuple[Parity, ...]:
    """One Parity (without a candidate's name) for the inputs' batch size and two others.

    precision: that of the Artifact.
    Raises ParityError at the first batch size that fails, naming the first operator that diverges.
    """
    kind, tolerance = tolerance_of(precision)
    session = load(path, target)
    found = []
    for size in batch_sizes(batch_size(inputs)):
        cut = resized(inputs, size)
        want = _torch_outputs(model, cut)
        try:
            got = run(session, cut)
        except BatchError as refusal:
            raise ParityError(
                "the file must run at every batch size",
                got=f"batch {size}: {refusal.got}",
                remedy="don't write batch sizes in forward",
            ) from refusal
        error = difference(got, want, precision)
        if not error <= tolerance:  # true for NaN too
            where = _located(model, inputs, path, session.target, dynamic, precision)
            raise ParityError(
                f"the file must agree with the torch model: {kind} at most {tolerance:g}",
                got=f"{error:.3g} at batch {size} in {session.target.runtime}; {where}",
                remedy="protect that module from the last step, or export for another runtime",
            )
        found.append(Parity("", size, kind, error, tolerance))
    return tuple(found)


def batch_sizes(size: int) -> tuple[int, ...]:
    """The batch size of the inputs, and two others."""
    return (size, *[other for other in (1, 3, 2) if other != size][:2])


def resized(inputs: Inputs, size: int) -> Inputs:
    """The first `size` samples, repeated from the start where there are fewer."""
    index = torch.arange(size) % batch_size(inputs)
    cut: Inputs = apply_tensors(inputs, lambda t: t[index.to(t.device)] if t.dim() else t)
    return cut


def run(session: Session, inputs: Inputs) -> tuple[Array, ...]:
    """A session on torch inputs: by name where they are a dict of its names, else in order."""
    arrays = [_array(tensor) for tensor in tensors(inputs)]
    if isinstance(inputs, dict) and set(inputs) == set(session.input_names):
        result = session(**{name: _array(inputs[name]) for name in inputs})
    else:
        result = session(*arrays)
    return result if isinstance(result, tuple) else (result,)


def difference(got: tuple[Array, ...], want: tuple[Array, ...], precision: str) -> float:
    """The largest over the outputs; infinity where number or shapes differ."""
    if [a.shape for a in got] != [b.shape for b in want]:
        return float("inf")
    return max((_difference(a, b, precision) for a, b in zip(got, want, strict=True)), default=0.0)


def _difference(got: Array, want: Array, precision: str) -> float:
    want = want.astype(np.float64)
    error, scale = (_norm(x, precision) for x in (got.astype(np.float64) - want, want))
    return 0.0 if error == 0 else error / scale if scale > 0 else float("inf")


def _norm(x: Array, precision: str) -> float:
    return float(np.linalg.norm(x) if tolerance_of(precision) == _INTEGER else np.abs(x).max(initial=0))


def _torch_outputs(model: nn.Module, inputs: Inputs) -> tuple[Array, ...]:
    """The model's outputs in evaluation mode; its modes are left as they were."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return tuple(_array(tensor) for tensor in tensors(call(model.eval(), inputs)))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _located(
    model: nn.Module, inputs: Inputs, path: Any, target: Target, dynamic: Dynamic | None, precision: str
) -> str:  # fmt: skip
    """The sentence that names the operator. Never fails: the disagreement itself is what has to be told."""
    try:
        found = first_divergence(model, resized(inputs, 2), path, target, dynamic=dynamic, measure=_measure(precision))
    except Exception as error:
        return f"the operator could not be located ({type(error).__name__})"
    return "no operator of the file could be compared" if found is None else str(found)


def _measure(precision: str) -> Any:
    """(difference of two arrays, tolerance) for single operators."""
    tolerance = tolerance_of(precision)[1]
    return (lambda got, want: difference((got,), (want,), precision)), tolerance
