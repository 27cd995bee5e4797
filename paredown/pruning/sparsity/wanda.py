"""Wanda (Sun et al., A Simple and Effective Pruning Approach for Large Language Models, arXiv:2306.11695, eq. 1).

    score_ij = |weight_ij| ||x_j||_2, compared within each row i

weight (..., out, columns), mean_square (..., 1 or out, columns): of the layer's inputs over all rows. The norm is taken as the
root of the mean square, so that a score doesn't depend on how much data was seen.
"""

from torch import Tensor


def wanda(weight: Tensor, mean_square: Tensor) -> Tensor:
    """One score a weight, of its shape."""
    return weight.abs() * mean_square.to(weight).sqrt()
