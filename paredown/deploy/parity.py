"""A file against the torch model that it was made from, in the runtime where it will run.

Computed in fp32, whatever weights are stored in: max |difference| / max |y| <= 1e-4.
Integers: ||difference|| / ||y|| <= 2 %, against the simulation in torch.

Beyond that a file gets a second look (`second_look.py`): in a deep or ill-conditioned net one that is right can be further off.
"""

import functools
import math
import pathlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from paredown.core.errors import BatchError, ParityError
from paredown.core.report import Parity
from paredown.core.target import Target
from paredown.deploy.divergence import Measure
from paredown.deploy.ports import Array
from paredown.deploy.second_look import Outputs, SecondLook
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
    more: Iterable[Inputs] = (),
) -> tuple[Parity, ...]:
    """One Parity (without a candidate's name) for the inputs' batch size and two others.

    precision: that of the Artifact. more: batches of real inputs, read where a quantized file gets a second look; none: `inputs`.
    Raises ParityError at the first batch size that fails, naming the first operator that diverges.
    """
    kind, tolerance = tolerance_of(precision)
    session = load(path, target)
    measure = Measure(lambda got, want: difference((got,), (want,), precision), tolerance, kind == _INTEGER[0])
    look = SecondLook(model, resized(inputs, 2), path, session.target, dynamic, measure, more or (inputs,))
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
        row = Parity("", size, kind, difference(got, want, precision), tolerance)
        if not row.error <= tolerance and look.operators() and math.isfinite(row.error):  # NaN isn't below it either
            if measure.integers:
                count, error, allowed = look.pooled(functools.partial(run, session), size)
                row = Parity("", size, f"{kind} over {count} samples", error, allowed)
            elif exact := look.against_exact(cut, got, want):
                row = Parity("", size, f"{kind}, against float64", *exact)
        if not row.error <= row.tolerance:
            raise ParityError(
                f"the file must agree with the torch model: {row.kind} at most {row.tolerance:.3g}",
                got=f"{row.error:.3g} at batch {size} in {session.target.runtime}; {look.words}",
                remedy="make the model's output the same every time in evaluation mode"
                if "operator: Random" in look.words
                else "protect that module from the last step, or export for another runtime",
            )
        found.append(row)
    return tuple(found)


def batch_sizes(size: int) -> tuple[int, ...]:
    """The batch size of the inputs, and two others."""
    return (size, *[other for other in (1, 3, 2) if other != size][:2])


def resized(inputs: Inputs, size: int) -> Inputs:
    """The first `size` samples, repeated from the start where there are fewer."""
    index = torch.arange(size) % batch_size(inputs)
    cut: Inputs = apply_tensors(inputs, lambda t: t[index.to(t.device)] if t.dim() else t)
    return cut


def run(session: Session, inputs: Inputs) -> Outputs:
    """A session on torch inputs: by name where they are a dict of its names, else in order."""
    arrays = [_array(tensor) for tensor in tensors(inputs)]
    if isinstance(inputs, dict) and set(inputs) == set(session.input_names):
        result = session(**{name: _array(inputs[name]) for name in inputs})
    else:
        result = session(*arrays)
    return result if isinstance(result, tuple) else (result,)


def difference(got: Outputs, want: Outputs, precision: str) -> float:
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


def _torch_outputs(model: nn.Module, inputs: Inputs) -> Outputs:
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
