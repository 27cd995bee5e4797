"""What processes that train together have to agree on."""

import torch
from torch import Tensor


def processes() -> int:
    """How many train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def from_first(value: Tensor) -> Tensor:
    """The first process's value, in all of them; it is overwritten."""
    if processes() > 1:
        torch.distributed.broadcast(value, 0)
    return value


def averaged_(value: Tensor) -> Tensor:
    """The mean of all processes' values, in all of them; it is overwritten."""
    if processes() > 1:
        torch.distributed.all_reduce(value)
        value /= processes()
    return value
