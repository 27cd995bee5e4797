"""Copies of a model with random weights, in which a cut is compared with the masked original.

`random_twin` draws every weight. `light_twin` is for probing, and for models so large that a copy of their weights in float64
wouldn't fit: its weights are views of a few pools of random numbers (`pools.py`); and `on_demand` makes what a cut or a mask
leaves of a large weight for the operation that reads it, so that none of the runs needs a second copy of the weights either.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from paredown.core.errors import SurgeryError
from paredown.graph.late import LateWeight, late_weights
from paredown.graph.manifest import Manifest
from paredown.graph.pools import pooled, random_values
from paredown.graph.surgery import Layout, copy_with, cut, fix_attributes_, kept_values, named_tensors, restore_attributes_
from paredown.task.batches import Inputs, apply_tensors, call, device_of, evaluating, first_samples, tensors, unfused

SIDE = 32  # pixels of a small twin's images
LARGE = 100_000_000  # elements of a model that is compared by a light twin
_BATCHES, _SAMPLES = 2, 2
_LATE = 1 << 18  # elements of a parameter that is made only when an operation reads it
_REMEDY = "name its module in protect, and please report the model"


@dataclass(frozen=True)
class Twin:
    """A copy of a model with random weights.

    weights: those, by name; the copy may hold others for a while. source: the model that it is a copy of.
    late: whether large parameters are made only when an operation reads them, which nothing that reads them otherwise sees.
    trains: whether a cut of it has to run in training mode too, as it does itself.
    """

    model: nn.Module
    source: nn.Module
    weights: dict[str, Tensor]
    batches: tuple[Any, ...]
    dtype: torch.dtype
    late: bool = False
    trains: bool = False

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the copy, by name, whatever values they hold."""
        return named_tensors(self.model)

    @functools.cached_property
    def overlapping(self) -> dict[str, Tensor]:
        """The weights that are larger than their memory: most operations copy one before they read it."""
        return {name: t for name, t in self.weights.items() if t.numel() * t.element_size() > t.untyped_storage().nbytes()}

    @functools.cached_property
    def layout(self) -> Layout:
        """Of the source."""
        return Layout.of(self.source)

    @functools.cached_property
    def modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules())


def full_twin(model: nn.Module, inputs: Inputs, seed: int) -> Twin:
    """What a cut is finally compared in: 2 batches of the inputs' own size, in float64 where the model runs in it.

    Weights are independent of one another; of a model of more than LARGE elements they are a light twin's.
    Raises SurgeryError where the model's output is never finite.
    """
    if sum(tensor.numel() for tensor in named_tensors(model).values()) > LARGE:
        twin = light_twin(model, inputs, seed, torch.float64, samples=_SAMPLES, batches=_BATCHES)
        if tried := late_where_possible(twin):
            return tried
    return random_twin(model, inputs, seed)


def random_twin(model: nn.Module, inputs: Inputs, seed: int) -> Twin:
    """In float64 where the model runs in it, else in float32. Raises SurgeryError where its output is never finite."""
    copy, trained, inputs = cut(model, Manifest()), named_tensors(model), first_samples(inputs, _SAMPLES)
    for gentle in (False, True):  # gentle: near the trained weights, where random ones overflow
        generator = torch.Generator().manual_seed(seed)
        _randomize_(copy, trained, generator, gentle=gentle)
        dtype = _widest(copy, inputs)
        batches = tuple(_random_inputs(inputs, generator, dtype) for _ in range(_BATCHES))
        if _are_finite(copy, batches, dtype):
            return Twin(copy, model, {name: t.detach() for name, t in named_tensors(copy).items()}, batches, dtype)
    raise SurgeryError("a model's output must be finite to be compared", got="NaN or infinity", remedy=_REMEDY)


def light_twin(
    model: nn.Module,
    inputs: Inputs,
    seed: int,
    dtype: torch.dtype,
    *,
    samples: int,
    side: int | None = None,
    late: bool = False,
    batches: int = 1,
) -> Twin:
    """Batches of a few samples, images (batch, channels, *) thinned out to about `side` pixels.

    Whether the class runs on it, in this type, and its output is finite, is not tried: `runs`.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = pooled(named_tensors(model), device_of(model), generator, dtype)
    few = _smaller(first_samples(inputs, samples), side)
    drawn = tuple(_random_inputs(few, generator, dtype) for _ in range(batches))
    return Twin(_holding(model, weights), model, weights, drawn, dtype, late)


def runs(twin: Twin) -> bool:
    """Whether a twin's class takes its size, its number of samples and its type, stays in that, and stays finite."""
    try:
        with on_demand(twin, {}):
            found = [t for batch in twin.batches for t in outputs(twin.model, batch, twin.dtype) if t.is_floating_point()]
    except Exception:  # whatever a class raises
        return False
    return all(t.dtype is twin.dtype and bool(torch.isfinite(t).all()) for t in found)


def training_too(twin: Twin) -> Twin:
    """The twin, whose cuts have to run in training mode too, if it does itself."""
    try:
        with on_demand(twin, {}):
            run_in_training(twin)
    except Exception:  # whatever a class raises
        return twin
    return replace(twin, trains=True)


def run_in_training(twin: Twin) -> None:
    """Runs the twin's model, as it is now, in training mode; modes, buffers and random numbers are as before afterwards."""
    kept = [(buffer, buffer.clone()) for buffer in twin.model.buffers()]  # batch norms write into them
    try:
        with evaluating(twin.model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            twin.model.train()
            for batch in twin.batches:
                outputs(twin.model, batch, twin.dtype)
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def late_where_possible(twin: Twin) -> Twin | None:
    """The twin, late if its class reads large parameters by operations of torch alone; None if it doesn't run."""
    late = replace(twin, late=True)
    large = {name: whole for name, whole in twin.weights.items() if _is_late(late, name, whole.numel())}
    with on_demand(late, {name: _whole(whole) for name, whole in large.items()}):
        if runs(late):
            return late
    return twin if runs(twin) else None


def outputs(model: nn.Module, batch: Any, dtype: torch.dtype) -> list[Tensor]:
    """Every tensor that a model returns; what its forward makes by torch.zeros and the like is of type `dtype`."""
    with torch.no_grad(), unfused(), _default_dtype(dtype), _checked_lstm(model):
        return tensors(call(model, apply_tensors(batch, torch.clone)))


@contextmanager
def on_demand(twin: Twin, values: dict[str, LateWeight]) -> Iterator[None]:
    """While active, parameters and buffers of the twin's model are what `values` make.

    Of a late twin a large parameter holds NaN that takes no memory; its value is made for the operation that reads it.
    """
    late = dict[int, LateWeight]()
    for name, value in values.items():
        tensor, whole = twin.tensors[name], twin.weights[name]
        if _is_late(twin, name, math.prod(value.size)):
            tensor.data, late[id(tensor)] = whole.new_full((), math.nan).expand(*value.size), value
        else:
            tensor.data = value.make(None)
    if twin.late:
        late |= {id(twin.tensors[name]): _whole(t) for name, t in twin.overlapping.items() if name not in values}
    try:
        with late_weights(late):
            yield
    finally:
        for name in values:
            twin.tensors[name].data = twin.weights[name]


def _whole(weight: Tensor) -> LateWeight:
    """A weight of which nothing is changed."""
    return LateWeight(weight.shape, functools.partial(_some, weight))


def _some(weight: Tensor, rows: Tensor | None) -> Tensor:
    return weight if rows is None else weight.index_select(0, rows)


@contextmanager
def masking(twin: Twin, removed: dict[str, dict[int, Tensor]]) -> Iterator[None]:
    """While active, the twin's model reads nothing of the `removed` indices of its weights, by name and dimension: zeros stand in
    their place.
    """
    values = {}
    for name, dimensions in removed.items():
        weight = twin.weights[name]
        ignored = dimensions[1] if dimensions.keys() == {1} else None
        make = functools.partial(zeroed, weight, dimensions)
        values[name] = LateWeight(weight.shape, make, functools.partial(_some, weight), ignored)
    with on_demand(twin, values):
        yield


def _is_late(twin: Twin, name: str, elements: int) -> bool:
    """Whether this tensor, of which so many elements are left, is made only when an operation reads it."""
    tensor = twin.tensors[name]
    return twin.late and isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and elements >= _LATE


def zeroed(weight: Tensor, removed: dict[int, Tensor], rows: Tensor | None = None) -> Tensor:
    """A copy with zeros at these indices of dimensions; of all rows, or of some."""
    value = weight.detach().clone() if rows is None else weight.detach().index_select(0, rows)
    for dimension, indices in removed.items():
        if dimension == 0 and rows is not None:
            value.index_fill_(0, torch.isin(rows, indices.to(rows.device)).nonzero().flatten(), 0)
        else:
            value.index_fill_(dimension, indices, 0)
    return value


@contextmanager
def recut(twin: Twin, manifest: Manifest) -> Iterator[None]:
    """While active, the twin's model is cut by `manifest`. What a cut leaves whole is shared with the twin."""
    values: dict[str, LateWeight] = {}
    for name in dict.fromkeys((*manifest.kept, *manifest.scaled)):
        kept, whole = manifest.kept.get(name, {}), twin.weights[name]
        size = [len(kept[d]) if d in kept else length for d, length in enumerate(whole.shape)]
        values[name] = LateWeight(size, functools.partial(kept_values, name, whole, manifest))
    fix_attributes_(twin.modules, twin.layout, manifest)
    try:
        with on_demand(twin, values):
            yield
    finally:
        restore_attributes_(twin.modules, twin.layout, manifest)


@contextmanager
def cut_twin(pruned: nn.Module, twin: Twin, manifest: Manifest) -> Iterator[nn.Module]:
    """A copy of a model, cut by `manifest` from the twin's source, that while active holds what is left of its weights."""
    sizes = {name: tensor.shape for name, tensor in named_tensors(pruned).items()}
    values = {
        name: LateWeight(size, functools.partial(kept_values, name, twin.weights[name], manifest)) for name, size in sizes.items()
    }
    empty = {name: twin.weights[name].new_zeros(()).expand(size) for name, size in sizes.items()}
    candidate = Twin(_holding(pruned, empty), pruned, empty, (), twin.dtype, twin.late)
    with on_demand(candidate, values):
        yield candidate.model


def _holding(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy in evaluation mode that has these values, by name."""
    parameters = {id(p) for p in model.parameters()}
    held = {
        name: nn.Parameter(weights[name], requires_grad=False) if id(t) in parameters else weights[name].detach()
        for name, t in named_tensors(model).items()
    }
    return copy_with(model, held).eval()


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


def _are_finite(model: nn.Module, batches: tuple[Any, ...], dtype: torch.dtype) -> bool:
    found = [t for batch in batches for t in outputs(model, batch, dtype) if t.is_floating_point()]
    return all(bool(torch.isfinite(t).all()) for t in found)


def _randomize_(model: nn.Module, trained: dict[str, Tensor], generator: torch.Generator, *, gentle: bool) -> None:
    """Floating-point tensors only: an integer buffer is an index."""
    parameters = {id(p) for p in model.parameters()}
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            tensor.data = _near(trained[name].detach(), noise) if gentle else random_values(noise, id(tensor) in parameters)


def _near(tensor: Tensor, noise: Tensor) -> Tensor:
    """Within some 10 % of what it is; where that is 0, a little above."""
    return tensor * (1 + 0.1 * noise) + 0.01 * noise.abs()


def _smaller(inputs: Inputs, side: int | None) -> Inputs:
    """Images and volumes (batch, channels, *) thinned out to about `side` pixels, never fewer."""

    def thin(t: Tensor) -> Tensor:
        if side is None or t.dim() < 4 or not t.is_floating_point():
            return t
        return t[(slice(None), slice(None), *(slice(size // max(size // side, 1)) for size in t.shape[2:]))]

    smaller: Inputs = apply_tensors(inputs, thin)
    return smaller


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


@contextmanager
def _checked_lstm(model: nn.Module) -> Iterator[None]:
    """An LSTM by torch's own operators. oneDNN's takes all layers to be as wide as the first, and reads beyond the weights of
    one that a cut made narrower.
    """
    if not any(isinstance(module, nn.LSTM) for module in model.modules()):
        yield
        return
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # as torch.backends.mkldnn.enabled does, which may have been made read-only
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)
