"""Weights that are sparse, and stay so while the model is trained.

A model carries the *names* of its sparse weights; the mask is wherever such a weight is zero. So nothing has to be kept in
step: cutting channels out, copying, saving and loading leave the zeros where they are. A zero in any other weight is a number
like any other and is trained.
"""

from collections.abc import Iterable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ATTRIBUTE = "_paredown_sparse"
Model = TypeVar("Model", bound=nn.Module)


def mark_sparse_(model: Model, names: Iterable[str]) -> Model:
    """Records that these parameters are sparse, beside those that are already; survives copy.deepcopy."""
    setattr(model, _ATTRIBUTE, tuple(dict.fromkeys((*sparse_names(model), *names))))
    return model


def sparse_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that are sparse, of the model itself or of a sparse model within it; empty where there is none."""
    found = list[str]()
    for path, module in model.named_modules():
        value = getattr(module, _ATTRIBUTE, ())
        found += [f"{path}.{name}" if path else name for name in value if isinstance(value, tuple)]
    return tuple(dict.fromkeys(found))


def sparse_weights(model: nn.Module) -> dict[str, Tensor]:
    """For each sparse weight its mask: a boolean tensor of its shape, true where the weight is zero and has to stay so."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return {name: known[name].detach() == 0 for name in sparse_names(model) if name in known}


def keep_sparse_(model: nn.Module) -> list[RemovableHandle]:
    """From now on gradients of what is zero in sparse weights are zero, so that it stays zero in any training loop.

    To be called once, before the optimizer is made; a copy of the model needs its own call. -> handles, whose remove() ends it.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    weights = {id(known[name]): known[name] for name in sparse_names(model) if name in known and known[name].requires_grad}
    return [_keep_(weight, (weight.detach() != 0).to(weight.dtype)) for weight in weights.values()]


def _keep_(weight: Tensor, kept: Tensor) -> RemovableHandle:
    handle: RemovableHandle = weight.register_hook(partial(torch.mul, kept))  # type: ignore[no-untyped-call]  # torch has none
    return handle


class Masks:
    """The masks of one model while it trains, as they are when this is made.

    A gradient that is zero leaves a weight of zero at zero: weight decay, momentum and Adam's moments of it are zero as well,
    and so is an average of it. Masking gradients, not weights, also keeps them out of the norm that is clipped.
    """

    def __init__(self, model: nn.Module) -> None:
        known = dict(model.named_parameters(remove_duplicate=False))
        found = {id(known[name]): known[name] for name in sparse_names(model) if name in known}  # tied weights once
        self._weights = list(found.values())
        self._kept = [(weight.detach() != 0).to(weight.dtype) for weight in self._weights]

    @torch.no_grad()
    def mask_gradients_(self) -> None:
        """Zeroes the gradients of what is masked. To be called after backward, before clipping."""
        pairs = [(w.grad, k) for w, k in zip(self._weights, self._kept, strict=True) if w.grad is not None]
        if pairs:
            torch._foreach_mul_([gradient for gradient, _ in pairs], [kept for _, kept in pairs])
