"""`paredown::fake_quantize_two_sided`: as `paredown::fake_quantize`, each sign with a scale of its own and no zero point.

q = clamp(round(x / s(x)), low, high); y = q s(q), s(x) the positive scale where x >= 0, else the negative one; rounding half to
even. Gradients pass straight through inside the range. `deploy` writes it in standard operators.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("paredown::fake_quantize_two_sided", mutates_args=())
def fake_quantize_two_sided(x: Tensor, negative: Tensor, positive: Tensor, axis: int, low: int, high: int) -> Tensor:
    """x: any shape, floating point. negative, positive: scales above 0, (1,) for a grid per tensor (axis = -1), or
    (x.shape[axis],). low < 0 < high: the integers of the grid, inclusive. -> x's shape and type.
    """
    s = _scale(x, negative, positive, axis)
    return torch.div(x, s).round_().clamp_(low, high).mul_(s)


@fake_quantize_two_sided.register_fake
def _(x: Tensor, negative: Tensor, positive: Tensor, axis: int, low: int, high: int) -> Tensor:  # noqa: ARG001 (the operator's)
    return torch.empty_like(x)


def _scale(x: Tensor, negative: Tensor, positive: Tensor, axis: int) -> Tensor:
    shape = [] if axis < 0 else [-1 if d == axis else 1 for d in range(x.dim())]
    below, above = (s.to(x.dtype).view(shape) for s in (negative, positive))
    return torch.where(x < 0, below, above)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (torch names it)
    x, negative, positive, axis, low, high = inputs
    q = torch.round(x / _scale(x, negative, positive, axis))
    ctx.save_for_backward((q >= low) & (q <= high))


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return gradient * inside, None, None, None, None, None


fake_quantize_two_sided.register_autograd(_backward, setup_context=_save)
