"""Hints (Romero et al., FitNets, arXiv:1412.6550, eq. 3).

    L = 1/2 mean over all elements of (r(student) - teacher)^2

r: nothing, where the widths agree; the channels that the student kept, where it was cut from the teacher (`kept`); else a
learned 1x1 adapter. Features are (batch, channels, *space), or (batch, *sequence, channels) where `axis` is -1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.distillation.losses.shapes import same_shape


def hint_loss(student: Tensor, teacher: Tensor, *, kept: Tensor | None = None, axis: int = 1) -> Tensor:
    """Features of both -> scalar. kept: of the teacher's channels on `axis` those that the student has, in order.

    Raises TaskError where the shapes differ, kept channels taken.
    """
    teacher = teacher.detach()
    if kept is not None:
        teacher = teacher.index_select(axis, kept.to(teacher.device))
    same_shape(student, teacher, "compare other layers, pass the kept channels, or put an adapter between them")
    return F.mse_loss(student, teacher) / 2


def adapter(student: Tensor, teacher: Tensor, *, axis: int = 1) -> nn.Module:
    """A linear map of channels, to be trained with the student and thrown away: 1x1 convolution, or linear where axis is -1.

    It starts as close to the identity as widths allow, so that channels that correspond already stay so.
    """
    before, after = student.shape[axis], teacher.shape[axis]
    kinds: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    last = axis in (-1, student.dim() - 1)
    map_: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    map_ = nn.Linear(before, after, bias=False) if last else kinds[student.dim()](before, after, 1, bias=False)
    with torch.no_grad():
        map_.weight.copy_(torch.eye(after, before).view(map_.weight.shape))
    return map_.to(student.device, student.dtype)
