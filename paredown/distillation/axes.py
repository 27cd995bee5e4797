"""Where channels lie in a module's output: on dimension 1, (batch, channels, *space), or on the last, (batch, *space, channels).

A shape doesn't tell, the layers around do. In this order: the module is a layer that we know; its output is that of such a layer
inside it, or goes into one; the number of channels of the last such layer that ran is the size of one of both dimensions. Else
(batch, length, channels) is taken of three dimensions, (batch, channels, *space) of more.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from paredown.distillation.features import observed
from paredown.task.batches import Inputs, call, evaluating, first_samples, tensors, unfused

_FIRST = (_ConvNd, _NormBase, nn.GroupNorm, _AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_LAST = frozenset((nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding))  # subclasses may lay their channels elsewhere


def channel_axes(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """1 or -1 for every module below the model whose output is a tensor of at least 2 dimensions. The model is not touched.

    inputs: a batch, of which two samples are looked at.
    """
    run = _Run()
    names = [name for name, _ in model.named_modules() if name]
    known = {name: axis for name in names if (axis := layer_axis(model.get_submodule(name))) is not None}
    with ExitStack() as stack:
        for manager in (evaluating(model), torch.no_grad(), unfused()):
            stack.enter_context(manager)
        stack.enter_context(observed(model, known, lambda name, given: run.enters(known[name], given), of="input"))
        stack.enter_context(observed(model, names, lambda name, output: run.leaves(name, known.get(name), output)))
        call(model, first_samples(inputs, 2))
    return run.axes()


def layer_axis(layer: nn.Module) -> int | None:
    """1 or -1 for layers that say where their channels lie; None for others."""
    if isinstance(layer, _FIRST):
        return 1
    return -1 if type(layer) in _LAST else None


class _Run:
    """What was seen in one pass. Tensors are held, so that none takes another's identity."""

    def __init__(self) -> None:
        self._outputs: dict[str, tuple[Tensor, int]] = {}  # and channels of the last known layer before
        self._known: dict[int, tuple[Tensor, int]] = {}  # id -> tensor, axis
        self._channels = 0

    def enters(self, axis: int, given: Any) -> None:
        for tensor in _first(given):
            self._known.setdefault(id(tensor), (tensor, axis))

    def leaves(self, name: str, axis: int | None, output: Any) -> None:
        for tensor in _first(output):
            if axis is not None:
                self._known[id(tensor)] = tensor, axis
                self._channels = tensor.shape[axis]
            self._outputs[name] = tensor, self._channels

    def axes(self) -> dict[str, int]:
        return {name: self._axis(tensor, channels) for name, (tensor, channels) in self._outputs.items()}

    def _axis(self, tensor: Tensor, channels: int) -> int:
        if tensor.dim() == 2:
            return 1
        if id(tensor) in self._known:
            return self._known[id(tensor)][1]
        fits = [axis for axis in (1, -1) if tensor.shape[axis] == channels]
        return fits[0] if len(fits) == 1 else -1 if tensor.dim() == 3 else 1


def _first(value: Any) -> Iterator[Tensor]:
    tensor = next(iter(tensors(value)), None)
    if tensor is not None and tensor.dim() > 1:
        yield tensor
