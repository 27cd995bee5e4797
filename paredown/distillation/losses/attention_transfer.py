"""Attention transfer (Zagoruyko, Komodakis, arXiv:1612.03928, section 3.1, eq. 2).

    Q(a) = sum over channels of a^2, as one vector of positions,   L = mean over samples of |Q_s / |Q_s| - Q_t / |Q_t||^2

Where a network looks, whatever its number of channels: no adapter. The distance is squared, as in the authors' own runs, so
that its gradient exists where both agree. Features are (batch, channels, *space); of two resolutions the finer is averaged.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from paredown.core.errors import TaskError
from paredown.distillation.losses.shapes import same_batch


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Features of both, of any widths and 1 to 3 spatial dimensions -> scalar. Raises TaskError where they don't fit."""
    same_batch(student, teacher, 2)
    if student.dim() != teacher.dim():
        raise TaskError(
            "teacher and student must give features of as many dimensions",
            got=f"{tuple(teacher.shape)} and {tuple(student.shape)}",
            remedy="capture layers of the same kind",
        )
    s, t = activation_map(student), activation_map(teacher.detach())
    space = [min(a, b) for a, b in zip(s.shape[1:], t.shape[1:], strict=True)]
    maps = [F.normalize(_averaged(each, space).flatten(1), dim=1) for each in (s, t)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def activation_map(features: Tensor) -> Tensor:
    """(batch, channels, *space) -> (batch, *space): the sum of squares over the channels."""
    return features.square().sum(1)


def _averaged(maps: Tensor, space: list[int]) -> Tensor:
    if list(maps.shape[1:]) == space:
        return maps
    pools: tuple[Callable[..., Tensor], ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    return pools[len(space) - 1](maps.unsqueeze(1), tuple(space)).squeeze(1)
