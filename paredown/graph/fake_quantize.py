"""Our fake-quantize operator, `paredown::fake_quantize`: rounds to a linear grid and back; gradients pass straight through.

q = clamp(round(x / scale) + zero_point, low, high); y = (q - zero_point) * scale, rounding half to even,
as ONNX QuantizeLinear and DequantizeLinear do. Straight-through estimator: arXiv:1308.3432.
It stands in exported graphs, where `deploy` translates it to Q/DQ nodes.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("paredown::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int, block: int = 0) -> Tensor:
    """x: any shape, floating point. scale: positive; zero_point: int32; both of shape (1,) for a grid per tensor
    (axis = -1) or (x.shape[axis],) for one per channel. low, high: the integers of the grid, inclusive. -> x's shape and type.

    block > 0: one grid per group; scale and zero_point are (rows, blocks): x is a matrix of x.shape[0] rows, each cut into
    blocks of `block` consecutive numbers, of which the last may be shorter (axis is 1).
    """
    s, z = _along(scale, x, axis, block), _along(zero_point, x, axis, block)
    return _rounded(x, s, z).clamp_(low, high).sub_(z).mul_(s)


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int, block: int = 0) -> Tensor:  # noqa: ARG001 (the operator's)
    return torch.empty_like(x)


def _rounded(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """A new tensor, round(x / scale) + zero_point."""
    return torch.div(x, scale).round_().add_(zero_point)


def _along(value: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """(channels,) -> a shape that broadcasts along `axis` of x; () per tensor; x's shape per group."""
    same = value if value.dtype == x.dtype else value.to(x.dtype)
    if block:
        return same.repeat_interleave(block, 1)[:, : x.numel() // max(x.shape[0], 1)].reshape(x.shape)
    return same.view(() if axis < 0 else [-1 if d == axis else 1 for d in range(x.dim())])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (torch names it)
    x, scale, zero_point, axis, low, high, block = inputs
    q = _rounded(x, _along(scale, x, axis, block), _along(zero_point, x, axis, block))
    ctx.save_for_backward((q >= low) & (q <= high))


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return gradient * inside, None, None, None, None, None, None


fake_quantize.register_autograd(_backward, setup_context=_save)
