"""How far a teacher's outputs spread, over the samples of the first batches together: a small batch alone hardly tells.

n, mean and sum of squared distances M of both parts -> of the whole (Chan, Golub, LeVeque 1979, eq. 2.1):
M = M_a + M_b + (mean_b - mean_a)^2 n_a n_b / (n_a + n_b)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_SAMPLES = 4096  # further ones change nothing that matters


class Spread:
    """Variances of several outputs (batch, ...), each number of an output by itself, in double precision."""

    def __init__(self) -> None:
        self._count = 0
        self._means: list[Tensor] = []
        self._squares: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Takes a batch in, while there were few. -> variances over the samples so far, each (1, ...).

        It begins anew where the outputs have other shapes than before.
        """
        if [tuple(t.shape[1:]) for t in outputs] != [tuple(mean.shape[1:]) for mean in self._means]:
            self._count = 0
            self._means = [torch.zeros_like(t[:1], dtype=torch.float64) for t in outputs]
            self._squares = [torch.zeros_like(mean) for mean in self._means]
        if self._count < _SAMPLES and outputs:
            self._take_in(outputs)
        return [(squares / max(self._count, 1)).to(t.dtype) for squares, t in zip(self._squares, outputs, strict=True)]

    def keep(self) -> dict[str, Tensor]:
        """What must be kept to go on later (`train.state.Carried`)."""
        kept = {"count": torch.tensor(self._count)}
        for i, (mean, squares) in enumerate(zip(self._means, self._squares, strict=True)):
            kept |= {f"mean/{i}": mean, f"squares/{i}": squares}
        return kept

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        self._count = int(kept["count"])
        outputs = range((len(kept) - 1) // 2)
        self._means, self._squares = ([kept[f"{name}/{i}"].clone() for i in outputs] for name in ("mean", "squares"))

    def _take_in(self, outputs: Sequence[Tensor]) -> None:
        fresh = len(outputs[0])
        whole = self._count + fresh
        for i, output in enumerate(outputs):
            mean = output.double().mean(0, keepdim=True)
            apart = mean - self._means[i]
            self._squares[i] += (output.double() - mean).square().sum(0, keepdim=True) + apart**2 * (self._count * fresh / whole)
            self._means[i] += apart * (fresh / whole)
        self._count = whole
