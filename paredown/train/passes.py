"""Pass after pass over the batches, and where in them a training stands."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from paredown.core.errors import BatchError
from paredown.task.batches import Batch, Batches, each
from paredown.train.seeds import RandomState


class Passes:
    """The batches again and again, of which this process takes its share.

    epoch, taken: the pass, and how many of its batches were handed out. began: the generators when the pass began.
    """

    def __init__(self, batches: Batches, device: torch.device, accelerator: Any) -> None:
        self._batches, self._device = batches, device
        self._processes, self._process = accelerator.num_processes, accelerator.process_index
        self.epoch = self.taken = 0
        self.began: RandomState | None = None
        self._now: RandomState | None = None

    def go_on_(self, epoch: int, taken: int, began: RandomState, now: RandomState) -> None:
        """To be called before the first batch. The pass is begun as it was, its first batches are drawn and dropped, and the
        generators are set to `now`: so what a pass draws when it begins (an order), or by itself, is as it was.
        """
        self.epoch, self.taken, self.began, self._now = epoch, taken, began, now

    def __iter__(self) -> Iterator[Batch]:
        for epoch in itertools.count(self.epoch):
            announce(self._batches, epoch)
            if self._now is None:
                self.epoch, self.taken, self.began = epoch, 0, RandomState.now()
            yield from self._rest(self._pass())

    def _pass(self) -> Iterator[Batch]:
        if self._now is not None and self.began is not None:
            self.began.restore()
        return itertools.islice(each(self._batches, "train", self._device), self._process, None, self._processes)

    def _rest(self, share: Iterator[Batch]) -> Iterator[Batch]:
        """What a pass still has to give."""
        if self._now is not None:
            for _ in itertools.islice(share, self.taken):
                pass
            self._now.restore()
            self._now = None
        for batch in share:
            self.taken += 1
            yield batch
        if not self.taken:
            raise BatchError(
                "train must hold at least one batch for each process",
                got=f"{self._processes} processes",
                remedy="use fewer processes or smaller batches",
            )


def announce(batches: Any, epoch: int) -> None:
    """Tells the batches, or the sampler of a DataLoader, which pass begins."""
    for owner in (batches, getattr(batches, "sampler", None)):
        set_epoch = getattr(owner, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
