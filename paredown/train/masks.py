"""Weights that are sparse, and stay so while the model is trained.

A model carries the *names* of its sparse weights; the mask is wherever such a weight is zero. So nothing has to be kept in
step: cutting channels out, copying, saving and loading leave the zeros where they are. A zero in any other weight is a number
like any other and is trained.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_ATTRIBUTE = "_paredown_sparse"


def mark_sparse_(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Records that these parameters are sparse, beside those that are already; survives copy.deepcopy."""
    setattr(model, _ATTRIBUTE, tuple(dict.fromkeys((*sparse_names(model), *names))))
    return model


def sparse_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that are sparse; empty for a model that never was made so."""
    value = getattr(model, _ATTRIBUTE, ())
    return value if isinstance(value, tuple) else ()


def sparse_weights(model: nn.Module) -> dict[str, Tensor]:
    """For each sparse weight its mask: a boolean tensor of its shape, true where the weight is zero and has to stay so."""
    known = dict(model.named_parameters(remove_duplicate=False))
    return {name: known[name].detach() == 0 for name in sparse_names(model) if name in known}


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
