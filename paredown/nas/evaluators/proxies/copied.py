"""A model that a proxy may do anything with: a copy; and inputs that it may change."""

import copy

from torch import nn

from paredown.core.errors import SearchError
from paredown.task.batches import Inputs, tensors


def copied(model: nn.Module, *, training: bool) -> nn.Module:
    """A deep copy in the mode asked for, every parameter requiring a gradient and without one."""
    twin = copy.deepcopy(model).requires_grad_(True).train(training)
    twin.zero_grad(set_to_none=True)
    return twin


def require_numbers(proxy: str, inputs: Inputs) -> None:
    """Raises SearchError where an input is no floating-point tensor: these proxies ask what a small change of it does."""
    odd = [t.dtype for t in tensors(inputs) if not t.is_floating_point()]
    if odd:
        raise SearchError(f"{proxy} changes its inputs, which must be floating-point", got=odd[0], remedy="use naswot or macs")
