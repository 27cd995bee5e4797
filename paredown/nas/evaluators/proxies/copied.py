"""A model that a proxy may do anything with: a copy."""

import copy

from torch import nn


def copied(model: nn.Module, *, training: bool) -> nn.Module:
    """A deep copy in the mode asked for, every parameter requiring a gradient and without one."""
    twin = copy.deepcopy(model).requires_grad_(True).train(training)
    twin.zero_grad(set_to_none=True)
    return twin
