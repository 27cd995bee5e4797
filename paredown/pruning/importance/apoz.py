"""Average percentage of zeros (APoZ: Hu et al., arXiv:1607.03250, eq. 1).

    I = 1 - APoZ = share of samples and positions where a != 0, as the consumers read it, divided by the mean of the group
Made for ReLU. Where nothing is ever 0 (GELU, SiLU, a sum without an activation) all atoms of a group tie, and only their
order decides.
"""

from torch import Tensor

from paredown.pruning.importance.aggregate import relative


def apoz(alive: Tensor) -> Tensor:
    """alive (size,): the share of non-zero values -> (size,) of mean 1."""
    return relative(alive)


def is_alive(a: Tensor) -> Tensor:
    """What is averaged: 1 where a is not 0, elementwise."""
    return (a != 0).to(a.dtype)
