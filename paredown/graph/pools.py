"""Random weights for a light twin: views of a few pools of random numbers, one per scale, so that they cost little memory.

A pool repeats itself after a prime number of them, and the rows of a very large matrix overlap in it, so that no two rows are
equal and neither the pool nor the matrix is as large as it looks.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

_SLACK = 8192  # how many places of a pool a tensor may begin at, so that no two of one size are equal
_PERIOD = 262_139  # a prime
_OVERLAPPING = 1 << 23  # elements of a matrix whose rows overlap in their pool,
_STEP = 61  # each beginning so many numbers after the one before


def pooled(named: dict[str, Tensor], device: torch.device, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random tensors of the same shapes. Matrices are scaled by their fan-in, to a power of two; what isn't floating stays."""
    kinds = {name: _kind(tensor) for name, tensor in named.items() if tensor.is_floating_point()}
    sizes: dict[Any, int] = {}
    for name, kind in kinds.items():
        sizes[kind] = max(sizes.get(kind, 0), _span(named[name]))
    noise = torch.randn(min(max(sizes.values(), default=0) + _SLACK, _PERIOD), generator=generator, dtype=dtype)
    pools = {kind: _pool(kind, size + _SLACK, noise).to(device) for kind, size in sizes.items()}
    starts = torch.randint(_SLACK, (len(named),), generator=generator).tolist()
    result = {}
    for (name, tensor), start in zip(named.items(), starts, strict=True):
        result[name] = tensor.detach()
        if name in kinds:
            result[name] = _shaped(pools[kinds[name]][start : start + _span(tensor)], tensor)
    return result


def random_values(noise: Tensor, parameter: bool) -> Tensor:
    """Matrices scaled by their fan-in; vectors around 1/2, of both signs; buffers positive, since a variance must be."""
    if not parameter:
        return torch.erf(noise).mul(0.5).add(1.0)
    if noise.dim() > 1:
        return noise * math.sqrt(noise.shape[0] / max(noise.numel(), 1))
    return noise.mul(0.5).add(0.5)


def _shaped(part: Tensor, like: Tensor) -> Tensor:
    """A view that has the shape of another tensor."""
    if len(part) == like.numel():
        return part.view(like.shape)
    return part.unfold(0, like[0].numel(), _STEP).view(like.shape)


def _span(tensor: Tensor) -> int:
    """How many numbers of a pool a tensor takes."""
    overlapping = tensor.dim() > 1 and tensor.numel() >= max(_OVERLAPPING, _STEP * len(tensor))
    return _STEP * (len(tensor) - 1) + tensor[0].numel() if overlapping else tensor.numel()


def _kind(tensor: Tensor) -> int | str:
    """Which pool a tensor comes from: of a matrix the power of two nearest to 1 / sqrt(fan-in)."""
    if not isinstance(tensor, nn.Parameter):
        return "buffer"
    fan_in = tensor.numel() // max(tensor.shape[0], 1) if tensor.dim() > 1 else 0
    return -round(math.log2(fan_in) / 2) if fan_in else "vector"


def _pool(kind: int | str, size: int, noise: Tensor) -> Tensor:
    """Random numbers; a large pool repeats itself, after so many of them that no two rows of a matrix are equal."""
    part = noise[:size]
    part = part * 2.0**kind if isinstance(kind, int) else random_values(part, kind == "vector")
    return part if size <= len(noise) else part.repeat(-(-size // len(noise)))[:size]
