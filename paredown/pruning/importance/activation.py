"""Activation importance: the mean absolute value of a channel (Molchanov et al., arXiv:1611.06440, section 2.2).

I = mean over samples and positions of |a|, as the consumers read it
"""

from torch import Tensor


def activation(a: Tensor) -> Tensor:
    """What is averaged: |a|, elementwise."""
    return a.abs()
