"""What stands in a model for a residual branch that was dropped, so that the class runs on unchanged.

x + f(x) becomes x + 0: the last module of f returns zeros, and the modules before it hand on what they get. The zeros have
size 1 in every dimension and broadcast against any x, so that an exporter folds them away; or, where the class writes into
them (`y += x`), the size of what the module gets.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.task.batches import tensors

Rank = int | None  # of a tensor; None for what isn't one


@dataclass(frozen=True)
class Dropped:
    """A module that does nothing any more, as data.

    outputs: ranks of the zeros that it returns; (): it hands on its first argument. several: it returns a tuple, not a tensor.
    whole: the zeros have the size of its first argument, instead of 1 everywhere.
    """

    module: str
    outputs: tuple[Rank, ...] = ()
    several: bool = False
    whole: bool = False


class Absent(nn.Module):
    """Stands where a module was; nothing in it is trained or saved."""

    def __init__(self, dropped: Dropped) -> None:
        super().__init__()
        self.dropped = dropped

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, outputs = tensors((*args, kwargs))[0], self.dropped.outputs
        if not outputs:
            return first
        zeros = tuple(None if rank is None else self._zero(first, rank) for rank in outputs)
        return zeros if self.dropped.several else zeros[0]

    def _zero(self, first: Tensor, rank: int) -> Tensor:
        if self.dropped.whole:
            return torch.zeros_like(first)
        dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
        return torch.zeros([1] * rank, dtype=dtype, device=first.device)

    def extra_repr(self) -> str:
        return "dropped" if self.dropped.outputs else "dropped, hands its input on"
