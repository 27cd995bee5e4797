"""N:M sparsity (Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv:2104.08378, section 3).

At most n of m consecutive weights along the input dimension are not zero; of a convolution: of m consecutive input channels
of one filter at one kernel position. Where m doesn't divide the inputs, the last few count as if zeros followed: at most n of
them stay. So a layer with no more than n inputs a group, a depthwise convolution for one, stays dense.
Equal scores: the lower index stays.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def parse(pattern: str) -> tuple[int, int]:
    """ "2:4" -> (2, 4): n that may stay, of m."""
    n, m = pattern.split(":")
    return int(n), int(m)


def nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """scores (..., inputs) -> a mask of that shape, true for all but the n highest of each m along the last dimension."""
    inputs = scores.shape[-1]
    padded = F.pad(scores.float(), (0, -inputs % m), value=-torch.inf)
    padded = padded.reshape(*scores.shape[:-1], -1, m)  # (..., runs, m)
    order = padded.argsort(dim=-1, descending=True, stable=True)
    rank = torch.arange(m, device=scores.device).expand_as(order)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, rank >= n)
    return mask.flatten(-2)[..., :inputs]


def runs(inputs: int, positions: int, length: int) -> list[tuple[int, int]]:
    """Where runs of at most `length` inputs lie in `positions` rows of `inputs` columns each, laid end to end: [start, stop)."""
    return [
        (position * inputs + start, position * inputs + min(start + length, inputs))
        for position in range(positions)
        for start in range(0, inputs, length)
    ]
