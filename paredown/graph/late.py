"""Weights that exist only while an operation reads them, by the modes of torch that see every operation of a class.

So it doesn't matter which module holds a weight, or how often and from where it is read: in a layer of any class, tied, or bare.
What reads its memory past the dispatcher, as nn.Parameter(weight) does, gets what stands in its place, which should be NaN.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_AXES: dict[Any, int] = {F.linear: -1, F.conv1d: -2, F.conv2d: -3, F.conv3d: -4}  # of the channels of their first argument


class Late(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Hands an operation the value of a tensor that stands for it.

    A value stays until another is made: a recurrent layer reads the same one at every step.

    values: makers, by the id of the tensor that stands for what they make.
    """

    def __init__(self, values: dict[int, Callable[[], Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.values, self.made = values, dict[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return func(*map(self._value, args), **{name: self._value(value) for name, value in (kwargs or {}).items()})

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return type(argument)(map(self._value, argument))
        key = id(argument)
        if key not in self.values:
            return argument
        if key not in self.made:
            self.made.clear()
            self.made[key] = self.values[key]()
        return self.made[key]


class WithoutInputs(TorchFunctionMode):
    """Linear layers and convolutions get zeros for inputs that their weight is to ignore, as if a copy of it had zeros.

    Convolutions with groups, and any other operation, are left alone.

    ignored: the whole weight and the indices of its dimension 1, by the id of the tensor that stands for it.
    """

    def __init__(self, ignored: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.ignored = ignored

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        axis, options = _AXES.get(func), kwargs or {}
        if axis is None or len(args) < 2 or id(args[1]) not in self.ignored:
            return func(*args, **options)
        weight, indices = self.ignored[id(args[1])]
        if args[0].shape[axis] != weight.shape[1]:  # in groups
            return func(*args, **options)
        return func(args[0].index_fill(axis, indices, 0), weight, *args[2:], **options)
