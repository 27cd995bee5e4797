"""Average percentage of zeros (APoZ: Hu et al., arXiv:1607.03250, eq. 1).

    I = 1 - APoZ = share of samples and positions where a != 0, as the consumers read it
Made for ReLU. Where nothing is ever 0 (GELU, SiLU, a sum without an activation) all atoms of a group tie, and only their
order decides.
"""

from torch import Tensor


def apoz(a: Tensor) -> Tensor:
    """What is averaged: 1 where a is not 0, elementwise."""
    return (a != 0).to(a.dtype)
