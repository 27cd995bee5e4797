"""SparseGPT (Frantar, Alistarh, arXiv:2301.00774, sections 3.1-3.3): optimal brain surgery, one column after the other.

    saliency_ij = weight_ij^2 / u_jj^2,   weight_i,j: -= (weight_ij / u_jj) u_j,j:   for each weight that goes

weight (out, columns), hessian (columns, columns) = X^T X / rows, u the upper Cholesky factor of its inverse: row j of u holds
what the inverse over the columns from j on has there. What is right of a weight that goes makes up for it; what is left of it
is done. The mask is chosen for a few columns at a time, just before they are worked on.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Choose = Callable[[Tensor], Tensor]


def solve(
    weight: Tensor,
    hessian: Tensor,
    spans: Iterable[tuple[int, int]],
    choose: Choose,
    *,
    zero: Tensor | None = None,
    damping: float = 0.01,
) -> Tensor:
    """The sparse weight (out, columns), in the type of `weight`, that keeps `weight @ x` best.

    spans: [start, stop) of columns, in order, together all of them. choose: saliencies (out, stop - start) -> the mask of the
    lowest. zero: a mask of weights that are zero already and stay so; their saliency is -1, below any other.
    damping: as a share of the mean of the hessian's diagonal; larger where no Cholesky factor exists.
    """
    factor = inverse_cholesky(hessian, damping)
    left = weight.to(factor.dtype, copy=True)
    for start, stop in spans:
        part, block = left[:, start:stop], factor[start:stop, start:stop]
        saliency = (part / block.diagonal()).square()
        held = torch.zeros_like(part, dtype=torch.bool) if zero is None else zero[:, start:stop]
        mask = choose(saliency.masked_fill(held, -1.0)) | held
        errors = _eliminate_(part, block, mask)
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return left.to(weight.dtype)


def inverse_cholesky(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor u of the inverse of the damped hessian, u^T u = (hessian + d I)^-1, in float64."""
    matrix = hessian.double()
    mean = matrix.diagonal().mean()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    if float(mean) <= 0:  # no input but zeros: every weight is worth the same
        return identity
    while True:
        lower, failed = torch.linalg.cholesky_ex(matrix + damping * mean * identity)
        if not int(failed):
            upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
            return upper
        damping = max(10 * damping, 1e-6)


def _eliminate_(part: Tensor, block: Tensor, mask: Tensor) -> Tensor:
    """Zeroes what is masked in `part` (out, span) and corrects what is right of it; returns the errors (out, span)."""
    errors = torch.zeros_like(part)
    for j in range(part.shape[1]):
        errors[:, j] = torch.where(mask[:, j], part[:, j] / block[j, j], 0)
        part[:, j:] -= torch.outer(errors[:, j], block[j, j:])
        part[:, j].masked_fill_(mask[:, j], 0)
    return errors
