"""What every attention of a model computes in a forward pass: queries, keys, values, scores. No module is touched.

Calls of torch functions are watched while the model runs: `scaled_dot_product_attention` with its arguments, and, where a class
writes it out, a softmax over keys whose result a matrix product takes to values. `nn.MultiheadAttention` is followed inside.
"""

import math
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paredown.distillation.features import observed
from paredown.task.batches import Inputs, batch_size, call, evaluating, unfused

_ATTENTION = F.scaled_dot_product_attention
_SOFTMAX = frozenset((F.softmax, torch.softmax, Tensor.softmax))
_PRODUCT = frozenset((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm))
_ELEMENTWISE = frozenset((  # what may happen to scores before the softmax, and to its result before the product
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__, torch.mul, Tensor.mul, Tensor.__mul__,
    Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__, torch.where, torch.masked_fill, Tensor.masked_fill,
    Tensor.masked_fill_, F.dropout, torch.dropout, Tensor.to, Tensor.type_as, Tensor.float, Tensor.contiguous,
))  # fmt: skip
HIDDEN = -1e4  # a score at or below it is of a key that the query can't look at
_LOWEST = -1e9  # what such a score becomes: after a softmax 0, and never NaN


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention. values, queries, keys: (batch, heads, length, width); the last two None where they weren't found.

    raw: (batch, heads, queries, keys), what goes into the softmax; None: to be computed. bias: what is added to the scores, None
    or of a shape that broadcasts to theirs. scale: of the product of queries and keys.
    """

    values: Tensor
    queries: Tensor | None
    keys: Tensor | None
    raw: Tensor | None = None
    bias: Tensor | None = None
    scale: float = 1.0

    def scores(self) -> Tensor:
        """(batch, heads, queries, keys) before the softmax; -1e9 where a mask hides the key."""
        scores = self.raw
        if scores is None:
            assert self.queries is not None and self.keys is not None  # of scaled_dot_product_attention both are known
            keys = self.keys.repeat_interleave(self.queries.shape[1] // self.keys.shape[1], 1)
            scores = self.queries @ keys.transpose(-1, -2) * self.scale
            scores = scores if self.bias is None else scores + self.bias
        return scores.masked_fill(scores <= HIDDEN, _LOWEST)

    def tokens(self) -> Tensor | None:
        """(batch, length), true where some query may look at a key: false for padding. None where no mask says so."""
        limits = self.bias if self.raw is None else self.raw
        if limits is None or limits.shape[-1] != self.values.shape[2]:
            return None
        seen = (limits.detach() > HIDDEN).flatten(1, -2).any(1)  # (batch or 1, keys)
        return seen.expand(len(self.values), -1)


@contextmanager
def attentions(samples: int) -> Iterator[list[Attention]]:
    """A list that gets every attention that is computed inside the `with`, in order. samples: in the batch."""
    watch = _Watch(samples)
    with watch:
        yield watch.found


def attention_modules(model: nn.Module, inputs: Inputs) -> list[str]:
    """The innermost module around each attention, in the order in which they run. The model is not touched."""
    stack, names = [""], list[str]()
    every = [name for name, _ in model.named_modules() if name]
    watch = _Watch(batch_size(inputs), lambda: names.append(stack[-1]))
    with (
        evaluating(model), torch.no_grad(), unfused(),
        observed(model, every, lambda name, _: stack.append(name), of="input"),
        observed(model, every, lambda *_: stack.__delitem__(-1)),
        watch,
    ):  # fmt: skip
        call(model, inputs)
    return names


class _Watch(TorchFunctionMode):
    """Notes attentions. Tensors on the way are held until the pass is over, so that none takes another's identity."""

    def __init__(self, samples: int, note: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.found: list[Attention] = []
        self._samples, self._note = samples, note
        self._products: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # result, operands
        self._softmax: dict[int, tuple[Tensor, Tensor]] = {}  # result, scores

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _unwrapped(*args, **kwargs)
        result = func(*args, **kwargs)
        if func is _ATTENTION:
            self._add(_called(*args, **kwargs))
        elif func in _SOFTMAX:
            self._softmax[id(result)] = (result, args[0] if args else kwargs["input"])
        elif func in _PRODUCT:
            self._multiplied(result, *args[-2:])
        elif func in _ELEMENTWISE:
            self._follow(result, [*args, *kwargs.values()])
        return result

    def _follow(self, result: Any, given: list[Any]) -> None:
        """What is known of an operand is known of the result."""
        for value in given:
            if id(value) in self._products:
                self._products[id(result)] = (result, *self._products[id(value)][1:])
            if id(value) in self._softmax:
                self._softmax[id(result)] = (result, self._softmax[id(value)][1])

    def _multiplied(self, result: Tensor, left: Any, right: Any) -> None:
        if id(left) not in self._softmax:
            self._products[id(result)] = result, left, right
            return
        scores = self._softmax[id(left)][1]
        if right.dim() not in (3, 4) or scores.dim() != right.dim():
            return
        found = self._products.get(id(scores))
        queries, keys = (None, None) if found is None else (self._by_head(found[1]), self._by_head(found[2]).transpose(-1, -2))
        self._add(Attention(self._by_head(right), queries, keys, self._by_head(scores)))

    def _by_head(self, tensor: Tensor) -> Tensor:
        """(batch * heads, length, width) -> (batch, heads, length, width)."""
        return tensor if tensor.dim() == 4 else tensor.reshape(self._samples, -1, *tensor.shape[1:])

    def _add(self, attention: Attention) -> None:
        self.found.append(attention)
        self._note()


def _called(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001
) -> Attention:
    """From the arguments of `scaled_dot_product_attention`; without heads, (batch, length, width), there is one."""
    query, key, value = (x.unsqueeze(1) if x.dim() == 3 else x for x in (query, key, value))
    bias = attn_mask
    if is_causal:
        hidden = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).triu(1)
        bias = torch.zeros_like(hidden, dtype=query.dtype).masked_fill(hidden, _LOWEST)
    elif bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, _LOWEST)
    if bias is not None:
        bias = bias.unsqueeze(1) if bias.dim() == 3 else bias[None, None] if bias.dim() == 2 else bias
    return Attention(value, query, key, None, bias, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)


def _without_dispatch(function: Any) -> Any:
    """The same function, which doesn't ask whether its call is watched: then those inside it are."""
    inner = types.FunctionType(
        function.__code__, {**function.__globals__, "has_torch_function": lambda _: False}, function.__name__
    )
    inner.__defaults__, inner.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return inner


_unwrapped = _without_dispatch(F.multi_head_attention_forward)
