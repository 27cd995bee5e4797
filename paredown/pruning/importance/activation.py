"""Activation importance: the mean absolute value of a channel (Molchanov et al., arXiv:1611.06440, section 2.2).

I = mean over samples and positions of |a|, as the consumers read it, divided by the mean of the group
"""

from torch import Tensor

from paredown.pruning.importance.aggregate import relative


def activation(means: Tensor) -> Tensor:
    """means (size,): of |a| -> (size,) of mean 1."""
    return relative(means)


def size_of(a: Tensor) -> Tensor:
    """What is averaged: |a|, elementwise."""
    return a.abs()
