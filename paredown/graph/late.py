"""Weights that exist only while an operation reads them, by the modes of torch that see every operation of a class.

So it doesn't matter which module holds a weight, or how often and from where it is read: in a layer of any class, tied, or bare.
What reads its memory past the dispatcher, as nn.Parameter(weight) does, gets what stands in its place, which should be NaN.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_AXES: dict[Any, int] = {F.linear: -1, F.conv1d: -2, F.conv2d: -3, F.conv3d: -4}  # of the channels of what goes in and comes out
_PART = 1 << 22  # elements of a weight that are made at a time, if the operation allows


@dataclass(frozen=True)
class LateWeight:
    """size: of the weight. make: all of it (None), or some of its rows, by their indices.

    ignored: indices of dimension 1, where they are all that `make` zeroes; `whole` gives the same without zeros.
    """

    size: Sequence[int]
    make: Callable[[Tensor | None], Tensor]
    whole: Callable[[Tensor | None], Tensor] | None = None
    ignored: Tensor | None = None


@contextmanager
def late_weights(weights: dict[int, LateWeight]) -> Iterator[None]:
    """While active, operations get the value of a tensor that stands for it; weights by the id of that tensor."""
    if not weights:
        yield
        return
    with _Whole(weights), _InParts(weights):
        yield


class _Whole(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Makes a weight for any operation.

    It stays until another is made: a recurrent layer reads the same one at every step.
    """

    def __init__(self, weights: dict[int, LateWeight]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.weights, self.made = weights, dict[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return func(*map(self._value, args), **{name: self._value(value) for name, value in (kwargs or {}).items()})

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return type(argument)(map(self._value, argument))
        key = id(argument)
        if key not in self.weights:
            return argument
        if key not in self.made:
            self.made.clear()
            self.made[key] = self.weights[key].make(None).contiguous()
        return self.made[key]


class _InParts(TorchFunctionMode):
    """Makes a large weight of a linear layer or a convolution some rows at a time, and of a table those that are looked up.

    Where a weight is to ignore some inputs, the layer gets zeros for them, as if a copy of it had zeros. Convolutions with
    groups, and any other operation, are left to `_Whole`.
    """

    def __init__(self, weights: dict[int, LateWeight]) -> None:
        super().__init__()
        self.weights = weights

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        options = kwargs or {}
        weight = self.weights.get(id(args[1])) if len(args) > 1 else None
        if weight is not None and func is F.embedding and (args[3:4] or [options.get("max_norm")])[0] is None:
            used, places = args[0].unique(return_inverse=True)
            return func(places, weight.make(used))
        axis = _AXES.get(func)
        if weight is None or axis is None or args[0].shape[axis] != weight.size[1]:
            return func(*args, **options)
        x, make = args[0], weight.make
        if weight.ignored is not None and weight.whole is not None:
            x, make = x.index_fill(axis, weight.ignored, 0), weight.whole
        elif math.prod(weight.size) <= _PART:
            return func(*args, **options)
        bias = args[2] if len(args) > 2 else options.pop("bias", None)
        parts = _parts(weight.size, x.device)
        if len(parts) == 1:
            return func(x, make(None), bias, *args[3:], **options)
        found = [func(x, make(rows), None if bias is None else bias[rows], *args[3:], **options) for rows in parts]
        return torch.cat(found, axis)


def _parts(size: Sequence[int], device: torch.device) -> list[Tensor]:
    """Indices of the rows that are made together."""
    rows = max(1, _PART // max(math.prod(size[1:]), 1))
    return [torch.arange(start, min(start + rows, size[0]), device=device) for start in range(0, size[0], rows)]
