"""Is a cut model equal to the masked original? Both get the same random weights; values are compared, not shapes alone.

Masking a removed index is zeroing the slices of every consumer of it; normalizations take their statistics over the kept ones.
float64 and 1e-9 relative: float32 fails falsely on deep nets. Every parameter is randomized, since biases that are initialised to
zero hide errors.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import SurgeryError
from paredown.graph.collect import Reader
from paredown.graph.manifest import Manifest
from paredown.graph.statistics import OverKept, Statistic, over_kept
from paredown.graph.surgery import cut, kept_values, named_tensors
from paredown.task.batches import Inputs, apply_tensors, batch_size, call, device_of, tensors, unfused

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_BATCHES, _SAMPLES = 2, 2
_REMEDY = "name its module in protect, and please report the model"


def _leave(mode: OverKept) -> None:
    mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch has no types here


def masked(model: nn.Module, manifest: Manifest, consumers: Collection[Reader]) -> nn.Module:
    """A copy of the model in full size in which every consumer ignores what `manifest` removes.

    consumers: dimensions of weights that are summed over, and statistics (`Groups.consumers`).
    """
    result = cut(model, Manifest())
    for name, value in masked_weights(named_tensors(result), manifest, consumers).items():
        named_tensors(result)[name].data = value
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
    twin = random_twin(original, inputs, seed)
    candidate = cut(pruned, Manifest()).to(twin.dtype).eval()
    for name, tensor in named_tensors(candidate).items():
        tensor.data = kept_values(name, twin.weights[name], manifest)
    return compare(candidate, twin, manifest, consumers)


@dataclass(frozen=True)
class Twin:
    """A copy of a model with random weights. weights: those, by name; the model's own may be masked for a while."""

    model: nn.Module
    weights: dict[str, Tensor]
    batches: tuple[Any, ...]
    dtype: torch.dtype


def random_twin(model: nn.Module, inputs: Inputs, seed: int) -> Twin:
    """In float64 where the model runs in it, else in float32. Raises SurgeryError where its output is never finite."""
    copy, inputs = cut(model, Manifest()), _few(inputs)
    trained = {name: tensor.detach().clone() for name, tensor in named_tensors(copy).items()}
    for gentle in (False, True):  # gentle: near the trained weights, where random ones overflow
        generator = torch.Generator().manual_seed(seed)
        _randomize_(copy, trained, generator, gentle=gentle)
        dtype = _widest(copy, inputs)
        batches = tuple(_random_inputs(inputs, generator, dtype) for _ in range(_BATCHES))
        found = [t for batch in batches for t in outputs(copy, batch, dtype) if t.is_floating_point()]
        if all(bool(torch.isfinite(t).all()) for t in found):
            return Twin(copy, {name: t.detach() for name, t in named_tensors(copy).items()}, batches, dtype)
    raise SurgeryError("a model's output must be finite to be compared", got="NaN or infinity", remedy=_REMEDY)


def compare(candidate: nn.Module, twin: Twin, manifest: Manifest, consumers: Collection[Reader]) -> float:
    """The largest relative difference of a candidate, cut from the twin, to the masked twin, which is left as it was."""
    own = named_tensors(twin.model)
    changed = masked_weights(twin.weights, manifest, consumers)
    for name, value in changed.items():
        own[name].data = value
    try:
        expected = []
        for batch in twin.batches:
            with _over_kept(twin.model, manifest, consumers):
                expected.append(outputs(twin.model, batch, twin.dtype))
    finally:
        for name in changed:
            own[name].data = twin.weights[name]
    pairs = zip(twin.batches, expected, strict=True)
    worst = max(_difference(_run(candidate, batch, twin.dtype), reference) for batch, reference in pairs)
    if not worst <= _TOLERANCE[twin.dtype]:
        rule = f"a cut model must equal the masked original to {_TOLERANCE[twin.dtype]:g}, relative"
        raise SurgeryError(rule, got=worst, remedy=_REMEDY)
    return worst


def masked_weights(weights: dict[str, Tensor], manifest: Manifest, consumers: Collection[Reader]) -> dict[str, Tensor]:
    """The weights that a cut takes input indices from, copied, with zeros in place of those indices."""
    result: dict[str, Tensor] = {}
    for name, dimension in (c for c in consumers if not isinstance(c, Statistic)):
        kept = manifest.kept.get(name, {}).get(dimension)
        if kept is not None:
            value = result.setdefault(name, weights[name].detach().clone())
            removed = sorted(set(range(value.shape[dimension])) - set(kept))
            value.index_fill_(dimension, torch.tensor(removed, device=value.device), 0)
    return result


def outputs(model: nn.Module, batch: Any, dtype: torch.dtype) -> list[Tensor]:
    """Every tensor that a model returns; what its forward makes by torch.zeros and the like is of type `dtype`."""
    with torch.no_grad(), unfused(), _default_dtype(dtype):
        return tensors(call(model, apply_tensors(batch, torch.clone)))


def _over_kept(model: nn.Module, manifest: Manifest, consumers: Collection[Reader]) -> AbstractContextManager[object]:
    """The mode in which statistics are taken over what is kept; nothing at all where none of them loses an index."""
    mode = over_kept((c for c in consumers if isinstance(c, Statistic)), manifest, device_of(model))
    return mode if mode.masks else nullcontext()


def _check_slices(original: nn.Module, pruned: nn.Module, manifest: Manifest) -> None:
    before, after = named_tensors(original), named_tensors(pruned)
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[:3]
        raise SurgeryError("a cut model must have the original's parameters", got=odd, remedy=_REMEDY)
    for name, tensor in before.items():
        if not torch.equal(kept_values(name, tensor, manifest), after[name]):
            raise SurgeryError("a cut model's weights must be slices of the original's", got=name, remedy=_REMEDY)


def _widest(model: nn.Module, inputs: Inputs) -> torch.dtype:
    """Casts the model to float64, where it runs in it and stays in it; else to float32."""
    model.to(torch.float64).eval()
    try:
        found = outputs(model, _random_inputs(inputs, torch.Generator(), torch.float64), torch.float64)
    except Exception:  # a type is written out in forward
        found = []
    if found and all(t.dtype is not torch.float32 for t in found):
        return torch.float64
    model.to(torch.float32)
    return torch.float32


def _randomize_(model: nn.Module, trained: dict[str, Tensor], generator: torch.Generator, *, gentle: bool) -> None:
    """Floating-point tensors only: an integer buffer is an index."""
    parameters = {id(p) for p in model.parameters()}
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            tensor.data = _near(trained[name], noise) if gentle else _random(noise, id(tensor) in parameters)


def _near(tensor: Tensor, noise: Tensor) -> Tensor:
    """Within some 10 % of what it is; where that is 0, a little above."""
    return tensor * (1 + 0.1 * noise) + 0.01 * noise.abs()


def _random(noise: Tensor, parameter: bool) -> Tensor:
    """Matrices scaled by their fan-in; vectors around 1/2, of both signs; buffers positive, since a variance must be."""
    if not parameter:
        return torch.erf(noise).mul(0.5).add(1.0)
    if noise.dim() > 1:
        return noise * math.sqrt(noise.shape[0] / max(noise.numel(), 1))
    return noise.mul(0.5).add(0.5)


def _few(inputs: Inputs) -> Inputs:
    """The first samples of a batch, enough to compare values."""
    samples = batch_size(inputs)
    few: Inputs = apply_tensors(inputs, lambda t: t[:_SAMPLES] if t.dim() and t.shape[0] == samples else t)
    return few


def _random_inputs(inputs: Inputs, generator: torch.Generator, dtype: torch.dtype) -> Any:
    def draw(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=dtype).to(t.device) if t.is_floating_point() else t

    return apply_tensors(inputs, draw)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _run(candidate: nn.Module, batch: Any, dtype: torch.dtype) -> list[Tensor]:
    try:
        return outputs(candidate, batch, dtype)
    except Exception as error:
        raise SurgeryError("a cut model must run", got=f"{type(error).__name__}: {error}", remedy=_REMEDY) from error


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """max |difference| / max |expected|, the worst of all outputs; infinite where shapes differ."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True) if b.numel()]
    worst = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs]
    return float("inf") if any(math.isnan(value) for value in worst) else max(worst, default=0.0)
