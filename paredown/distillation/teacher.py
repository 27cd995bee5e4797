"""A teacher whose outputs are computed once per sample and then remembered, where samples come again unchanged.

A sample is known by a digest of its inputs, so that a shuffled data set hits as well as a fixed one. Samples that are augmented
anew never come twice in one training: after a whole pass with next to no hit nothing is remembered any more. But the next
training with the same seed meets the same ones, so that what is kept for it is given up only when it found nothing either.
"""

import copy
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paredown.core.errors import ArtifactError, TaskError
from paredown.distillation.features import with_features
from paredown.distillation.memory import Known, Memory
from paredown.task.batches import Inputs, apply_tensors, batch_size, call, check_finite, device_of, digests, tensors, unfused
from paredown.train.layout import laid_out, lay_out_
from paredown.train.state import model_digest

T = TypeVar("T")

_BYTES_AT_MOST = 256 << 20
_LEAST_HITS = 0.01  # share of a pass's samples
_LIKE = 1e-3  # of the largest output: batches of another size are computed in another order


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

    def keep(self) -> dict[str, Tensor]:
        """What must be kept to go on later (`train.state.Carried`)."""

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        """Goes on from what `keep` gave."""


class Teacher:
    """A frozen copy of a model. `model` itself is never touched.

    batches_per_pass: a pass of as many calls with next to no hit, the first aside, ends the remembering; None: nothing does.
    bytes_at_most: of what is remembered; further samples are computed each time.
    folder: where it is remembered for other processes too, in a folder of the model's own; what the first batch takes from
    there is computed once more, and held against it. lasting: for later trainings, too.
    Nothing is remembered where inputs or outputs don't have the samples on dimension 0, or where a batch norm without statistics
    of its own makes an output depend on what else is in the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batches_per_pass: int | None = None,
        bytes_at_most: int = _BYTES_AT_MOST,
        folder: Path | None = None,
        lasting: bool = False,
    ) -> None:
        self.model = frozen(model)
        self._memory = Memory(bytes_at_most, None if folder is None else folder / model_digest(model)[:16])
        self._doubted = self._memory.inherited
        self._first_of_several = lasting and not self._memory.inherited
        self._learning = 0 if lasting else 1  # passes in which there can't be a hit
        self._batches_per_pass = batches_per_pass
        self._calls = self._samples = self._hits = 0
        self.computed = 0  # samples that the model ran on
        self.remembers = not any(_looks_at_the_batch(module) for module in self.model.modules())

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """The floating-point tensors of the outputs, in order, each with the samples on dimension 0.

        Raises ArtifactError where the outputs in the folder are not this model's.
        """
        if not self.remembers or not _by_row(inputs, batch_size(inputs)):
            return self.compute(inputs)
        keys, known = digests(inputs), self._memory.known  # what is forgotten meanwhile still serves this call
        missing = [row for row, key in enumerate(keys) if key not in known]
        self._count(len(keys), len(keys) - len(missing))
        if len(missing) == len(keys):
            return self._learn(keys, inputs)[0]
        fresh: dict[bytes, Known] = {}
        if missing:
            fresh = self._learn([keys[row] for row in missing], _rows(inputs, missing))[1]
        rows = [fresh.get(key) or known[key] for key in keys]
        if len({tuple(tensor.shape[1:] for tensor in each.outputs) for each in rows}) > 1:  # as long as their batch was
            return self.compute(inputs)
        device = tensors(inputs)[0].device
        found = [torch.stack([each.outputs[i][each.row].to(device) for each in rows]) for i in range(len(rows[0].outputs))]
        if self._doubted:
            self._compare(inputs, [row for row in range(len(keys)) if row not in missing], found)
        return found

    def features(self, inputs: Inputs, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The outputs, and the first tensor that each named module gives; computed at every call, features aren't remembered."""
        self.computed += batch_size(inputs)
        return ask(self.model, inputs, names)

    @torch.no_grad()
    def compute(self, inputs: Inputs) -> list[Tensor]:
        """The outputs; neither looked up nor remembered."""
        outputs = floating(answer(self.model, inputs, call))
        if self.computed == 0:
            check_finite(outputs, "outputs of a teacher")
        self.computed += batch_size(inputs)
        return outputs

    def keep(self) -> dict[str, Tensor]:
        """Counts; what is remembered is on disk afterwards, where there is a folder."""
        self._memory.flush()
        return {
            "counts": torch.tensor([self._calls, self._samples, self._hits, int(self.remembers), int(self._first_of_several)])
        }

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        self._calls, self._samples, self._hits, remembers, first = kept["counts"].tolist()
        self._first_of_several = bool(first)
        if not remembers:
            self._forget()

    def _learn(self, keys: list[bytes], inputs: Inputs) -> tuple[list[Tensor], dict[bytes, Known]]:
        """Computes `inputs`, samples of these digests, and remembers them while there is room."""
        outputs = self.compute(inputs)
        fresh = {key: Known(outputs, row) for row, key in enumerate(keys)}
        if any(tensor.dim() == 0 or tensor.shape[0] != len(keys) for tensor in outputs):
            self._forget()
        if self.remembers:
            self._memory.add(fresh, keys, outputs)
        return outputs, fresh

    def _compare(self, inputs: Inputs, rows: list[int], found: list[Tensor]) -> None:
        """Outputs that another process left are this model's own? Its code may have changed, which no digest tells."""
        self._doubted = False
        computed = self.compute(_rows(inputs, rows))
        same = len(computed) == len(found) and all(
            c.shape[1:] == f.shape[1:] and bool((c - f[rows]).abs().max() <= _LIKE * c.abs().max())
            for c, f in zip(computed, found, strict=True)
        )
        if not same:
            raise ArtifactError(
                "outputs in a teacher's folder must be what the teacher gives",
                got="others",
                remedy="delete the folder: the model's code has changed since",
            )

    def _count(self, samples: int, hits: int) -> None:
        """At the end of a pass: was it worth it?"""
        self._calls, self._samples, self._hits = self._calls + 1, self._samples + samples, self._hits + hits
        if self._batches_per_pass is None or self._calls % self._batches_per_pass:
            return
        passes = self._calls // self._batches_per_pass
        if not self._first_of_several and passes > self._learning and self._hits < _LEAST_HITS * self._samples:
            self._forget()
        self._samples = self._hits = 0

    def _forget(self) -> None:
        self.remembers = False
        self._memory.forget()


def _rows(inputs: Inputs, rows: list[int]) -> Inputs:
    """These samples of a batch."""
    index = torch.tensor(rows, device=tensors(inputs)[0].device)
    chosen: Inputs = apply_tensors(inputs, lambda t: t[index])
    return chosen


def _looks_at_the_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _by_row(inputs: Inputs, samples: int) -> bool:
    return all(tensor.dim() > 0 and tensor.shape[0] == samples for tensor in tensors(inputs))


@torch.no_grad()
def ask(model: nn.Module, inputs: Inputs, names: Collection[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The floating-point outputs of a frozen model, and what its named modules give."""
    with unfused():
        output, found = answer(model, inputs, functools.partial(with_features, names=names))
    return floating(output), found


def answer(model: nn.Module, inputs: Inputs, how: Callable[[nn.Module, Inputs], T]) -> T:
    """`how(model, inputs)` on the device of the inputs and in the layout that the model takes.

    The model gives up channels last for good where it can't run so. Raises TaskError where it doesn't take the inputs at all.
    """
    model = placed(model, inputs)
    if _is_channels_last(model):
        try:
            return how(model, inputs)
        except RuntimeError:
            lay_out_(model, torch.contiguous_format)
    try:
        return how(model, laid_out((inputs, None), torch.contiguous_format)[0])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise TaskError(
            "a teacher must take the batches that the student is trained on",
            got=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            remedy="pass a teacher with the student's inputs",
        ) from error


def _is_channels_last(model: nn.Module) -> bool:
    kernels = [p for p in model.parameters() if p.dim() == 4]
    return bool(kernels) and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def floating(output: Any) -> list[Tensor]:
    """The floating-point tensors in a nest, in order, without those of no dimension: a loss beside the outputs, for one."""
    return [tensor for tensor in tensors(output) if tensor.is_floating_point() and tensor.dim() > 0]


def frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without gradients, 4-dimensional weights channels last.

    Raises TaskError for a model that can't be copied: one whose modules hold tensors with a history.
    """
    try:
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
    except RuntimeError as error:
        raise TaskError(
            "a teacher must be a model that can be copied",
            got=str(error).partition("\n")[0],
            remedy="call it once under torch.no_grad(); use torch.nn.utils.parametrizations.weight_norm for the old weight_norm",
        ) from error
    lay_out_(teacher, torch.channels_last)
    return teacher


def placed(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The model, moved to the device of the inputs."""
    device = tensors(inputs)[0].device
    return model if device_of(model) == device else model.to(device)
