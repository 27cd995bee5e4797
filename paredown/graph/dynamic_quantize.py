"""Our operator `paredown::dynamic_quantize`: rounds a tensor to 256 values of its own range and back, as it comes.

What ONNX DynamicQuantizeLinear computes:

    scale = (max(x, 0) - min(x, 0)) / 255
    zero_point = clamp(round(-min(x, 0) / scale), 0, 255)
    q = clamp(round(x / scale) + zero_point, 0, 255)

and y = (q - zero_point) * scale. One scale for the whole tensor: a sample's values depend a little on those it shares a batch
with. Gradients pass straight through.
"""

from typing import Any

import torch
from torch import Tensor

_STEPS = 255


@torch.library.custom_op("paredown::dynamic_quantize", mutates_args=())
def dynamic_quantize(x: Tensor) -> Tensor:
    """x: floating point, any shape with at least one number -> x's shape and type."""
    scale, zero_point = dynamic_grid(x)
    return torch.div(x, scale).round_().add_(zero_point).clamp_(0, _STEPS).sub_(zero_point).mul_(scale)


@dynamic_quantize.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def dynamic_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: any shape -> scale (), zero point (), both of x's type; scale 1 for a tensor of zeros."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / _STEPS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, torch.round(-low / scale).clamp(0, _STEPS)


def _backward(_ctx: Any, gradient: Tensor) -> Tensor:
    return gradient


dynamic_quantize.register_autograd(_backward)
