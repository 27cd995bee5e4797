"""Optimal Brain Surgeon on the gates of a group (Hassibi and Stork 1993, eq. 5; empirical Fisher as in Singh and Alistarh,
arXiv:2004.14340).

    I_k = 1 / (2 [F^-1]_kk),
    F = damping + 1/N sum_n (dL_n/dz)(dL_n/dz)^T,   z the gates (size,) of the group
the loss that is left when the other atoms of the group are scaled to make up for k as well as they can. An atom whose work
others can do scores low, though its own Fisher information is high. The scaling itself is left to the training that follows.
What is left after *one* atom doesn't add up over several; it counts relative to the group's mean (ResNet-20 at 0.5x MACs, no
training: 56 % top-1, 22 % as it is, 24 % per MAC).

F has at most N directions besides its damping, so by Woodbury's identity, with G (N, size),
    [F^-1]_kk = 1/d (1 - G_k^T (N d + G G^T)^-1 G_k),   d the damping
costs N^2 * size, whatever the size.
"""

import torch
from torch import Tensor


def obs(gates: Tensor, *, damping: float = 0.01) -> Tensor:
    """gates (pieces, size): dL/dz of each -> (size,), at least 0.

    damping: as a multiple of the mean of F's diagonal.
    """
    pieces = len(gates)
    floor = damping * gates.square().mean().clamp_min(1e-60)
    inner = gates @ gates.T + pieces * floor * torch.eye(pieces, dtype=gates.dtype)  # (pieces, pieces)
    explained = (gates * torch.linalg.solve(inner, gates)).sum(0)  # (size,), in [0, 1)
    scores: Tensor = floor / (2 * (1 - explained).clamp_min(1e-12))
    return scores
