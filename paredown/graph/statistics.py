"""Normalizations of the masked original: their statistics run over the kept indices only.

A normalization is told from others by being the k-th call of its operator: the class runs the same calls in the same order as
when it was traced. `OverKept` counts them and computes those that lose indices:
    y = (x - mean of the kept) / sqrt(variance of the kept + eps) * weight + bias
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from paredown.core.errors import SurgeryError
from paredown.graph.labels import Array
from paredown.graph.manifest import Manifest

Call = tuple[str, int]  # the k-th call, counted from 0, of an operator
Kept = dict[int, Tensor]  # dimension, counted from the end: the indices kept of it
OPERATORS = ("layer_norm", "rms_norm", "group_norm", "mean", "batch_norm")


@dataclass(frozen=True, eq=False)
class Statistic:
    """A dimension over which one call takes statistics.

    axis: counted from the end, so negative. sources: (tensor, dimension, there, here), index `here[k]` lives while index
    `there[k]` of that dimension of a weight does; what no source names lives always.
    """

    call: Call
    axis: int
    size: int
    sources: tuple[tuple[str, int, Array, Array], ...]

    def kept(self, manifest: Manifest) -> Array | None:
        """The indices that `manifest` keeps, ascending; None where it keeps all."""
        alive = np.ones(self.size, dtype=np.bool_)
        for tensor, dimension, there, here in self.sources:
            indices = manifest.kept.get(tensor, {}).get(dimension)
            if indices is not None:
                alive[here[~np.isin(there, indices)]] = False
        return None if alive.all() else np.flatnonzero(alive)


class OverKept(TorchFunctionMode):
    """While active, the calls named in `masks` take their statistics over the kept indices."""

    def __init__(self, masks: dict[Call, Kept]) -> None:
        super().__init__()
        self.masks, self.calls = masks, Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = getattr(func, "__name__", ""), kwargs or {}
        if name not in _FORMULAS or not args:
            return func(*args, **options)
        kept = self.masks.get((name, self.calls[name]))
        self.calls[name] += 1
        return func(*args, **options) if kept is None else _FORMULAS[name](kept, *args, **options)

    def __enter__(self) -> "OverKept":
        self.calls.clear()
        super().__enter__()  # type: ignore[no-untyped-call]  # torch has no types here
        return self


def over_kept(statistics: Iterable[Statistic], manifest: Manifest, device: torch.device) -> OverKept:
    """The mode in which a full-size model runs as if `manifest` had removed what it removes."""
    masks: dict[Call, Kept] = {}
    for statistic in statistics:
        kept = statistic.kept(manifest)
        if kept is not None:
            masks.setdefault(statistic.call, {})[statistic.axis] = torch.from_numpy(kept).to(device)
    return OverKept(masks)


def uncountable(run: Callable[[], Any], counts: dict[str, int], operators: Collection[str]) -> list[str]:
    """Which of these operators the class calls another number of times than stand in its graph.

    run: runs the class. counts: calls in the graph.
    """
    with OverKept({}) as mode:
        run()
    return [name for name in operators if mode.calls[name] != counts.get(name, 0)]


def _layer_norm(
    kept: Kept, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_rest: Any
) -> Tensor:
    dims, part = list(range(-len(shape), 0)), _part(x, kept)
    mean, variance = part.mean(dims, keepdim=True), part.var(dims, correction=0, keepdim=True)
    return _affine((x - mean) * torch.rsqrt(variance + eps), weight, bias)


def _rms_norm(kept: Kept, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    square = _part(x, kept).square().mean(list(range(-len(shape), 0)), keepdim=True)
    return _affine(x * torch.rsqrt(square + (torch.finfo(x.dtype).eps if eps is None else eps)), weight, None)


def _group_norm(
    kept: Kept,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_rest: Any,
) -> Tensor:
    """x (batch, channels, *): of every group the same channels are kept, or none."""
    (indices,) = kept.values()
    width = x.shape[1] // num_groups
    blocks = x.reshape(len(x), num_groups, width, -1)  # (batch, group, channel in group, position)
    part = blocks[:, :, torch.unique(indices % width)].flatten(2)
    mean, variance = part.mean(-1)[:, :, None, None], part.var(-1, correction=0)[:, :, None, None]
    result = ((blocks - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)
    shape = (-1, *[1] * (x.dim() - 2))
    return _affine(result, *(None if p is None else p.reshape(shape) for p in (weight, bias)))


def _mean(kept: Kept, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return _part(x, kept).mean(dim, keepdim=keepdim, dtype=dtype)


def _batch_norm(
    kept: Kept, x: Tensor, *_none: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, **_rest: Any
) -> Tensor:
    """Weight standardization: x (1, out, in * kernel) is a weight. What is removed of it weighs nothing."""
    (indices,) = kept.values()
    part = _part(x, kept)
    mean, variance = part.mean(-1, keepdim=True), part.var(-1, correction=0, keepdim=True)
    rows = (None if p is None else p.reshape(-1, 1) for p in (weight, bias))
    result = _affine((part - mean) * torch.rsqrt(variance + eps), *rows)
    return torch.zeros_like(x).index_copy_(-1, indices, result)


_FORMULAS: dict[str, Callable[..., Tensor]] = dict(
    zip(OPERATORS, (_layer_norm, _rms_norm, _group_norm, _mean, _batch_norm), strict=True)
)


def _part(x: Tensor, kept: Kept) -> Tensor:
    for axis, indices in kept.items():
        if int(indices[-1]) >= x.shape[axis]:
            raise SurgeryError(
                "a class must run the same normalizations in the same order as when it was traced",
                got=f"{x.shape[axis]} values where {int(indices[-1]) + 1} or more were expected",
                remedy="name its module in protect, and please report the model",
            )
        x = x.index_select(axis, indices)
    return x


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
