"""New statistics for the batch norms of a model whose weights were changed.

A pruned layer's outputs have another mean and variance than the ones its batch norm remembers, and most of the accuracy
lost by cutting comes back by measuring them anew (Izmailov et al., arXiv:1803.05407, do it after averaging weights).
"""

import contextlib
import copy
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from paredown.core.errors import BatchError
from paredown.task.batches import Batches, call, device_of, each, evaluating, first_samples, fitting, tensors
from paredown.train.seeds import seeded


def recalibrate_(model: nn.Module, batches: Batches, *, frozen: Collection[str] = (), batches_at_most: int = 50) -> int:
    """Resets the running statistics to their plain average over at most `batches_at_most` training batches.

    Only the batch norms are in training mode meanwhile; weights, modes and momenta stay what they were. Left alone are those
    without running statistics, those in the modules named by `frozen`, and those that no batch reached (of another domain, of an
    auxiliary head). Returns how many were recalibrated: 0 where the model has none, which is no error.
    Raises BatchError where a batch norm sees only one value per channel. On any error the old statistics stand.
    """
    kept = {id(part) for name, module in model.named_modules() if name in frozen for part in module.modules()}
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and id(m) not in kept]
    if not norms:
        return 0
    device = device_of(model)
    with evaluating(model), _averaging(norms), torch.no_grad():
        for inputs, _ in itertools.islice(each(batches, "train", device), batches_at_most):
            with fitting("train", inputs), needing_two_samples():
                call(model, inputs)
        return sum(bool(norm.num_batches_tracked) for norm in norms)


def require_two_samples(model: nn.Module, batches: Batches) -> None:
    """Raises BatchError before any work where a batch is known to hold one sample, and the model can't train on that.

    Known are the batches of a list, and those of a DataLoader over a data set with a length; others are met when they come.
    """
    if 1 not in _known_sizes(batches):
        return
    with needing_two_samples(), torch.no_grad(), seeded(0):
        inputs, _ = next(each(batches, "train", device_of(model)))
        call(copy.deepcopy(model).train(), first_samples(inputs, 1))


def _known_sizes(batches: Batches) -> list[int]:
    match batches:
        case list() | tuple():
            inputs = [batch[0] for batch in batches if isinstance(batch, tuple | list) and batch]
            return [len(found[0]) for found in map(tensors, inputs) if found and found[0].dim()]
        case DataLoader(batch_size=int(size), drop_last=False, sampler=Sized() as samples):
            return [len(samples) % size or size]
        case _:
            return []


@contextlib.contextmanager
def needing_two_samples() -> Iterator[None]:
    """torch's ValueError of a batch norm in training mode that got one value per channel, as a BatchError with its remedy."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise BatchError(
            "a training batch needs at least 2 samples where batch norms train",
            got="a batch of 1",
            remedy="pass drop_last=True to the DataLoader",
        ) from error


@contextlib.contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """The batch norms in training mode with a cumulative average. After an error, or where it didn't run, each has its old."""
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        yield
    except BaseException:
        _put_back_(norms, before)
        raise
    else:
        still = [(norm, values) for norm, values in zip(norms, before, strict=True) if not norm.num_batches_tracked]
        _put_back_([norm for norm, _ in still], [values for _, values in still])
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _put_back_(norms: Sequence[_BatchNorm], before: Sequence[Mapping[str, Tensor]]) -> None:
    for norm, values in zip(norms, before, strict=True):
        for name, buffer in norm.named_buffers():
            buffer.copy_(values[name])
