"""A teacher whose outputs are computed once per sample and then remembered, where samples come again unchanged.

A sample is known by a digest of its inputs, so that a shuffled data set hits as well as a fixed one. Augmented samples
never come twice: after a whole pass with next to no hit nothing is remembered any more.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paredown.distillation.features import with_features
from paredown.task.batches import Inputs, apply_tensors, batch_size, call, device_of, digests, tensors, unfused

_BYTES_AT_MOST = 256 << 20
_BYTES_PER_SAMPLE = 300  # of a dictionary's entry, beside the outputs themselves
_LEAST_HITS = 0.01  # share of a pass's samples


class Asked(Protocol):
    """Who is asked during a distillation: one teacher, several, or an average of the student."""

    @property
    def model(self) -> nn.Module:
        """Whose hidden layers are compared."""

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """The floating-point tensors of the outputs, in order."""

    def compute(self, inputs: Inputs) -> list[Tensor]:
        """The same, computed and not remembered."""

    def features(self, inputs: Inputs, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The same, and what the named modules of `model` give."""


@dataclass(frozen=True)
class _Known:
    """One row of the outputs that were computed together."""

    outputs: list[Tensor]
    row: int


class Teacher:
    """A frozen copy of a model. `model` itself is never touched.

    batches_per_pass: a pass of as many calls with next to no hit, the first aside, ends the remembering; None: nothing does.
    bytes_at_most: of what is remembered; further samples are computed each time.
    Inputs and outputs have the samples on dimension 0; where outputs don't, nothing is remembered.
    """

    def __init__(self, model: nn.Module, *, batches_per_pass: int | None = None, bytes_at_most: int = _BYTES_AT_MOST) -> None:
        self.model = frozen(model)
        self._known: dict[bytes, _Known] = {}
        self._batches_per_pass, self._room = batches_per_pass, bytes_at_most
        self._calls = self._samples = self._hits = 0
        self.computed = 0  # samples that the model ran on
        self.remembers = True

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """The floating-point tensors of the outputs, in order, each with the samples on dimension 0."""
        if not self.remembers:
            return self.compute(inputs)
        keys, known = digests(inputs), self._known  # what is forgotten meanwhile still serves this call
        missing = [row for row, key in enumerate(keys) if key not in known]
        self._count(len(keys), len(keys) - len(missing))
        if len(missing) == len(keys) or not _by_row(inputs, len(keys)):
            return self._learn(keys, range(len(keys)), inputs)[0]
        fresh: dict[bytes, _Known] = {}
        if missing:
            index = torch.tensor(missing, device=tensors(inputs)[0].device)
            _, fresh = self._learn(keys, missing, apply_tensors(inputs, lambda t: t[index]))
        rows = [fresh.get(key) or known[key] for key in keys]
        return [torch.stack([found.outputs[i][found.row] for found in rows]) for i in range(len(rows[0].outputs))]

    def features(self, inputs: Inputs, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The outputs, and the first tensor that each named module gives; computed at every call, features aren't remembered."""
        self.computed += batch_size(inputs)
        return ask(self.model, inputs, names)

    @torch.no_grad()
    def compute(self, inputs: Inputs) -> list[Tensor]:
        """The outputs; neither looked up nor remembered."""
        self.computed += batch_size(inputs)
        return floating(call(placed(self.model, inputs), inputs))

    def _learn(self, keys: list[bytes], rows: Any, inputs: Inputs) -> tuple[list[Tensor], dict[bytes, _Known]]:
        """Computes `inputs`, the samples at `rows` of the batch, and remembers them while there is room."""
        outputs = self.compute(inputs)
        fresh = {keys[row]: _Known(outputs, place) for place, row in enumerate(rows)}
        if any(tensor.dim() == 0 or tensor.shape[0] != len(rows) for tensor in outputs):
            self._forget()
        size = sum(t.numel() * t.element_size() for t in outputs) + _BYTES_PER_SAMPLE * len(rows)
        if self.remembers and size <= self._room:
            self._room -= size
            self._known.update(fresh)
        return outputs, fresh

    def _count(self, samples: int, hits: int) -> None:
        """At the end of every pass but the first: was it worth it?"""
        self._calls, self._samples, self._hits = self._calls + 1, self._samples + samples, self._hits + hits
        if self._batches_per_pass is None or self._calls % self._batches_per_pass:
            return
        if self._calls > self._batches_per_pass and self._hits < _LEAST_HITS * self._samples:
            self._forget()
        self._samples = self._hits = 0

    def _forget(self) -> None:
        self.remembers = False
        self._known = {}


def _by_row(inputs: Inputs, samples: int) -> bool:
    return all(tensor.dim() > 0 and tensor.shape[0] == samples for tensor in tensors(inputs))


@torch.no_grad()
def ask(model: nn.Module, inputs: Inputs, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The floating-point outputs of a frozen model, and what its named modules give."""
    with unfused():
        output, found = with_features(placed(model, inputs), inputs, names)
    return floating(output), found


def floating(output: Any) -> list[Tensor]:
    """The floating-point tensors in a nest, in order."""
    return [tensor for tensor in tensors(output) if tensor.is_floating_point()]


def frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without gradients, 4-dimensional weights channels last."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    for parameter in teacher.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return teacher


def placed(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The model, moved to the device of the inputs."""
    device = tensors(inputs)[0].device
    return model if device_of(model) == device else model.to(device)
