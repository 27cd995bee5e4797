"""Our operators for weights that are stored in another form than they are computed in. Gradients pass straight through.

    paredown::round_float(x, exponent_bits)   to the nearest 16-bit float: 5 bits of exponent are fp16, 8 are bf16
    paredown::look_up(x, codebook)            to the nearest of a few values (Han et al., arXiv:1510.00149, section 3)

They stand in exported graphs, where `deploy` stores the 16-bit floats, or indices into the codebook.
"""

from typing import Any

import torch
from torch import Tensor

FLOATS = {5: torch.float16, 8: torch.bfloat16}  # exponent bits -> type


@torch.library.custom_op("paredown::round_float", mutates_args=())
def round_float(x: Tensor, exponent_bits: int) -> Tensor:
    """x: floating point, any shape -> x's shape and type. Beyond the largest 16-bit float it gives infinity."""
    return x.to(FLOATS[exponent_bits]).to(x.dtype, copy=True)


@torch.library.custom_op("paredown::look_up", mutates_args=())
def look_up(x: Tensor, codebook: Tensor) -> Tensor:
    """x: floating point, any shape; codebook (codes,): ascending -> x's shape and type."""
    return codebook[nearest_code(x, codebook)].to(x.dtype)


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Indices of the nearest values, int64, in x's shape; halfway between two the smaller one."""
    return torch.bucketize(x.detach().float().contiguous(), (codebook[1:] + codebook[:-1]) / 2)


@round_float.register_fake
def _(x: Tensor, exponent_bits: int) -> Tensor:  # noqa: ARG001 (the operator's)
    return torch.empty_like(x)


@look_up.register_fake
def _(x: Tensor, codebook: Tensor) -> Tensor:  # noqa: ARG001 (the operator's)
    return torch.empty_like(x)


def _backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return gradient, None


round_float.register_autograd(_backward)
look_up.register_autograd(_backward)
