"""Is a cut model equal to the masked original? Both get the same random weights; values are compared, not shapes alone.

Masking a removed index is zeroing the slices of every consumer of it, a dropped branch zeroing what it adds; normalizations take
their statistics over the kept ones. float64 and 1e-9 relative: float32 fails falsely on deep nets. Every parameter is randomized,
since biases that are initialised to zero hide errors. Of models of more than `twin.LARGE` elements the random weights come from
pools that repeat after some 262,000 numbers, never within two rows of a matrix; type, tolerance and batches are the same.
"""

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from paredown.core.errors import SurgeryError
from paredown.graph.collect import Reader
from paredown.graph.manifest import Manifest
from paredown.graph.statistics import OverKept, Statistic, over_kept
from paredown.graph.surgery import cut, kept_values, named_tensors
from paredown.graph.twin import Twin, cut_twin, full_twin, masking, outputs, recut, run_in_training, zeroed
from paredown.task.batches import Inputs, apply_tensors, device_of

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_REMEDY = "name its module in protect, and please report the model"


def _leave(mode: OverKept) -> None:
    mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch has no types here


def masked(model: nn.Module, manifest: Manifest, consumers: Collection[Reader]) -> nn.Module:
    """A copy of the model in full size in which every consumer ignores what `manifest` removes.

    consumers: dimensions of weights that are summed over, and statistics (`Groups.consumers`).
    """
    result = cut(model, Manifest())
    tensors = named_tensors(result)
    for name, removed in removed_inputs(tensors, manifest, consumers).items():
        tensors[name].data = zeroed(tensors[name], removed)
    _zero_branches(result, manifest)
    mode = _over_kept(result, manifest, consumers)
    if isinstance(mode, OverKept):
        result.register_forward_pre_hook(lambda *_: mode.__enter__() and None)
        result.register_forward_hook(lambda *_: _leave(mode), always_call=True)
    return result


def check_cut(
    original: nn.Module, pruned: nn.Module, manifest: Manifest, consumers: Collection[Reader], inputs: Inputs, *, seed: int = 0
) -> float:
    """The largest relative difference of `pruned` to the masked `original`, on 2 random batches shaped like `inputs`.

    manifest: relative to `original`. consumers: as in `masked`. Integer inputs are used as they are. Neither model is touched.
    Raises SurgeryError where they differ, where the cut model can't run, or where its weights are not slices of the original's.
    """
    _check_slices(original, pruned, manifest)
    twin = full_twin(original, inputs, seed)
    with cut_twin(pruned, twin, manifest) as candidate:
        found = [_run(candidate, batch, twin.dtype) for batch in twin.batches]
    return _judge(found, twin, manifest, consumers)


def compare(candidate: nn.Module, twin: Twin, manifest: Manifest, consumers: Collection[Reader]) -> float:
    """The largest relative difference of a candidate, cut from the twin, to the masked twin, which is left as it was.

    Raises SurgeryError where they differ, or the candidate can't run.
    """
    found = [_run(candidate, batch, twin.dtype) for batch in twin.batches]
    return _judge(found, twin, manifest, consumers)


def compare_recut(twin: Twin, manifest: Manifest, consumers: Collection[Reader]) -> float:
    """The same for the twin's own model, cut for a while. Where the twin says so, the cut must run in training mode too."""
    with recut(twin, manifest):
        found = [_run(twin.model, batch, twin.dtype) for batch in twin.batches]
        if twin.trains:
            with _running("a cut model must run in training mode, as the original does"):
                run_in_training(twin)
    return _judge(found, twin, manifest, consumers)


def _judge(found: Sequence[list[Tensor]], twin: Twin, manifest: Manifest, consumers: Collection[Reader]) -> float:
    with masking(twin, removed_inputs(twin.weights, manifest, consumers)), _without(twin.model, manifest):
        expected = []
        for batch in twin.batches:
            with _over_kept(twin.model, manifest, consumers):
                expected.append(_run(twin.model, batch, twin.dtype, "the masked original must run"))
    worst = max(_difference(mine, reference) for mine, reference in zip(found, expected, strict=True))
    if not worst <= _TOLERANCE[twin.dtype]:
        rule = f"a cut model must equal the masked original to {_TOLERANCE[twin.dtype]:g}, relative"
        raise SurgeryError(rule, got=worst, remedy=_REMEDY)
    return worst


def removed_inputs(weights: dict[str, Tensor], manifest: Manifest, consumers: Collection[Reader]) -> dict[str, dict[int, Tensor]]:
    """The indices of dimensions of weights that a cut takes inputs from."""
    removed: dict[str, dict[int, Tensor]] = {}
    for name, dimension in (c for c in consumers if not isinstance(c, Statistic)):
        kept = manifest.kept.get(name, {}).get(dimension)
        if kept is not None:
            gone = _others(kept, weights[name].shape[dimension])
            removed.setdefault(name, {})[dimension] = gone.to(weights[name].device)
    return removed


@functools.lru_cache(maxsize=1024)
def _others(kept: tuple[int, ...], size: int) -> Tensor:
    """The indices that are not kept; mostly of several dimensions the same."""
    return torch.from_numpy(np.setdiff1d(np.arange(size), kept))


def _over_kept(model: nn.Module, manifest: Manifest, consumers: Collection[Reader]) -> AbstractContextManager[object]:
    """The mode in which statistics are taken over what is kept; nothing at all where none of them loses an index."""
    mode = over_kept((c for c in consumers if isinstance(c, Statistic)), manifest, device_of(model))
    return mode if mode.masks else nullcontext()


@contextmanager
def _without(model: nn.Module, manifest: Manifest) -> Iterator[None]:
    """While active, dropped branches add zeros."""
    handles = _zero_branches(model, manifest)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero_branches(model: nn.Module, manifest: Manifest) -> list[RemovableHandle]:
    """The last module of each dropped branch returns zeros."""
    last = [model.get_submodule(part.module) for part in manifest.dropped if part.outputs]
    return [module.register_forward_hook(lambda *a: apply_tensors(a[-1], torch.zeros_like)) for module in last]


def _check_slices(original: nn.Module, pruned: nn.Module, manifest: Manifest) -> None:
    before, after = named_tensors(original), named_tensors(pruned)
    gone = tuple(f"{part.module}." for part in manifest.dropped)
    before = {name: tensor for name, tensor in before.items() if not name.startswith(gone)}
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[:3]
        raise SurgeryError("a cut model must have the original's parameters", got=odd, remedy=_REMEDY)
    for name, tensor in before.items():
        if not _identical(kept_values(name, tensor, manifest), after[name]):
            raise SurgeryError("a cut model's weights must be slices of the original's", got=name, remedy=_REMEDY)


def _identical(one: Tensor, other: Tensor) -> bool:
    """NaN equals NaN: a model may keep one where nothing reads it."""
    same = torch.equal(one, other)
    return same or (one.shape == other.shape and one.is_floating_point() and bool(torch.isclose(one, other, 0, 0, True).all()))


def _run(model: nn.Module, batch: Any, dtype: torch.dtype, rule: str = "a cut model must run") -> list[Tensor]:
    with _running(rule):
        return outputs(model, batch, dtype)


@contextmanager
def _running(rule: str) -> Iterator[None]:
    """Whatever a class raises within it, as the SurgeryError that this rule is broken."""
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:
        raise SurgeryError(rule, got=f"{type(error).__name__}: {error}", remedy=_REMEDY) from error


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """max |difference| / max |expected|, the worst of all outputs; infinite where shapes differ."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True) if b.numel()]
    worst = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs]
    return float("inf") if any(math.isnan(value) for value in worst) else max(worst, default=0.0)
