"""Fisher importance (Theis et al., arXiv:1801.05787 eq. 7; grouped channels: Liu et al., arXiv:2108.00708 eq. 5).

Near a minimum of the loss L its gradient vanishes and its Hessian is the Fisher information, of which only first derivatives
are needed. For the gate z of an atom, over samples n,
    I = 1/(2N) sum_n (dL_n/dz)^2
the diagonal of the gates' empirical Fisher matrix. In the loss's unit in every group, so groups compare and scores add up.
Here n counts pieces of a few samples: the square of a sum of gradients that don't agree is the sum of their squares on average.
"""

from torch import Tensor


def fisher(gates: Tensor) -> Tensor:
    """gates (pieces, size): dL/dz of each -> (size,), at least 0."""
    return 0.5 * gates.square().mean(0)
