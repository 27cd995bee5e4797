"""Is a cut model equal to the masked original? Both get the same random weights; values are compared, not shapes alone.

Masking a removed index is zeroing the slices of every consumer of it. float64 and 1e-9 relative: float32 fails falsely on
deep nets. Every parameter is randomized, since biases that are initialised to zero hide errors.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import SurgeryError
from paredown.graph.collect import Dimension
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut, named_tensors, take
from paredown.task.batches import Inputs, apply_tensors, call, tensors

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_BATCHES = 2
_REMEDY = "please report the model; meanwhile name the module in protect"


def masked(model: nn.Module, manifest: Manifest, consumers: Collection[Dimension]) -> nn.Module:
    """A copy of the model in full size in which every consumer ignores what `manifest` removes."""
    return _mask_(cut(model, Manifest()), manifest, consumers)


def check_cut(
    original: nn.Module, pruned: nn.Module, manifest: Manifest, consumers: Collection[Dimension], inputs: Inputs, *, seed: int = 0
) -> float:
    """The largest relative difference of `pruned` to the masked `original`, on 2 random batches shaped like `inputs`.

    manifest: relative to `original`. consumers: dimensions of weights that are summed over (`Groups.consumers`).
    Integer inputs are used as they are. Neither model is touched.
    Raises SurgeryError where they differ, where the cut model can't run, or where its weights are not slices of the original's.
    """
    _check_slices(original, pruned, manifest)
    generator = torch.Generator().manual_seed(seed)
    for gentle in (False, True):  # gentle: near the trained weights, where random ones overflow
        error = _compare(original, pruned, manifest, consumers, inputs, generator, gentle=gentle)
        if error is not None:
            return error
    raise SurgeryError("a model's output must be finite to be compared", got="NaN or infinity", remedy=_REMEDY)


def _compare(
    original: nn.Module,
    pruned: nn.Module,
    manifest: Manifest,
    consumers: Collection[Dimension],
    inputs: Inputs,
    generator: torch.Generator,
    *,
    gentle: bool,
) -> float | None:
    """None where the masked original itself isn't finite."""
    reference, candidate = cut(original, Manifest()), cut(pruned, Manifest())
    dtype = _widen_(reference, candidate, inputs)
    _randomize_(reference, generator, gentle=gentle)
    values = named_tensors(reference)
    _assign_(candidate, {name: take(value, manifest.kept.get(name, {})) for name, value in values.items()})
    _mask_(reference, manifest, consumers)
    worst = 0.0
    for _ in range(_BATCHES):
        batch = _random_inputs(inputs, generator, dtype)
        expected = _outputs(reference, batch, dtype)
        if not all(bool(torch.isfinite(t).all()) for t in expected if t.is_floating_point()):
            return None
        worst = max(worst, _difference(_run(candidate, batch, dtype), expected))
    if not worst <= _TOLERANCE[dtype]:  # true for NaN too
        raise SurgeryError(
            f"a cut model must equal the masked original to {_TOLERANCE[dtype]:g}, relative", got=worst, remedy=_REMEDY
        )
    return worst


def _widen_(reference: nn.Module, candidate: nn.Module, inputs: Inputs) -> torch.dtype:
    """Both models to float64, where the model runs and stays in it; else back to float32."""
    for dtype in (torch.float64, torch.float32):
        reference.to(dtype).eval(), candidate.to(dtype).eval()
        try:
            outputs = _outputs(reference, apply_tensors(inputs, lambda t, d=dtype: _cast(t, d)), dtype)  # type: ignore[misc] # a default argument binds the loop's value
        except Exception:
            if dtype is torch.float32:
                raise
            continue
        if all(t.dtype is not torch.float32 for t in outputs):
            return dtype
    return torch.float32


def _check_slices(original: nn.Module, pruned: nn.Module, manifest: Manifest) -> None:
    before, after = named_tensors(original), named_tensors(pruned)
    if before.keys() != after.keys():
        raise SurgeryError(
            "a cut model must have the original's parameters", got=sorted(before.keys() ^ after.keys())[:3], remedy=_REMEDY
        )
    for name, tensor in before.items():
        if not torch.equal(take(tensor, manifest.kept.get(name, {})), after[name]):
            raise SurgeryError("a cut model's weights must be slices of the original's", got=name, remedy=_REMEDY)


def _mask_(model: nn.Module, manifest: Manifest, consumers: Collection[Dimension]) -> nn.Module:
    values = named_tensors(model)
    for name, dimension in consumers:
        kept = manifest.kept.get(name, {}).get(dimension)
        if kept is not None:
            removed = sorted(set(range(values[name].shape[dimension])) - set(kept))
            values[name].data.index_fill_(dimension, torch.tensor(removed, device=values[name].device), 0)
    return model


def _randomize_(model: nn.Module, generator: torch.Generator, *, gentle: bool) -> None:
    """Floating-point tensors only: an integer buffer is an index."""
    parameters = {id(p) for p in model.parameters()}
    for tensor in named_tensors(model).values():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            random = tensor.cpu() * (1 + 0.1 * noise) + 0.01 * noise.abs() if gentle else _random(noise, id(tensor) in parameters)
            tensor.data.copy_(random)


def _random(noise: Tensor, parameter: bool) -> Tensor:
    """Matrices scaled by their fan-in; vectors around 1/2, of both signs; buffers positive, since a variance must be."""
    if not parameter:
        return 0.5 + torch.special.ndtr(noise)
    if noise.dim() > 1:
        return noise * (noise.shape[0] / max(noise.numel(), 1)) ** 0.5
    return 0.5 + 0.5 * noise


def _assign_(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, tensor in named_tensors(model).items():
        tensor.data.copy_(values[name])


def _random_inputs(inputs: Inputs, generator: torch.Generator, dtype: torch.dtype) -> Any:
    def draw(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=dtype).to(t.device) if t.is_floating_point() else t

    return apply_tensors(inputs, draw)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What forward makes by torch.zeros and the like is of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _outputs(model: nn.Module, batch: Any, dtype: torch.dtype) -> list[Tensor]:
    with torch.no_grad(), _default_dtype(dtype):
        return tensors(call(model, apply_tensors(batch, torch.clone)))


def _run(candidate: nn.Module, batch: Any, dtype: torch.dtype) -> list[Tensor]:
    try:
        return _outputs(candidate, batch, dtype)
    except Exception as error:
        raise SurgeryError("a cut model must run", got=f"{type(error).__name__}: {error}", remedy=_REMEDY) from error


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """max |difference| / max |expected|, the worst of all outputs; infinite where shapes differ."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True) if b.numel()]
    worst = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs]
    return max(worst) if all(value == value for value in worst) else float("inf")
