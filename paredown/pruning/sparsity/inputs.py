"""What goes into each layer, summed up batch after batch: memory doesn't grow with the number of batches.

A layer's input is seen as the rows that its weight is multiplied with: (groups, rows, columns), columns = kernel positions x
inputs of a group, in the order of `as_matrices`. A linear layer has one group, and a row a token; a convolution a row an
output position.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.errors import NotFiniteError, RecipeError
from paredown.pruning.sparsity.layers import Layer, Sparse
from paredown.task.batches import Batch, batch_size, call, each, evaluating, fitting, rows_of, tensors
from paredown.task.task import Task

_VALUES_AT_ONCE = 1 << 22  # of rows that are laid out for one product


def square_sum(rows: Tensor) -> Tensor:
    """(groups, rows, columns) -> (groups, columns): the squared norm of each column."""
    return rows.square().sum(1)


def gram(rows: Tensor) -> Tensor:
    """(groups, rows, columns) -> (groups, columns, columns): X^T X."""
    return rows.transpose(1, 2) @ rows


def samples(task: Task, count: int) -> Iterator[Batch]:
    """Batches of task.train up to `count` samples, the last cut to fit, on the model's device."""
    left = count
    for batch in each(task.train, "train", task.device):
        size, rest = batch_size(batch[0]), left
        left -= size
        yield batch if left >= 0 else rows_of(batch, size, slice(rest))
        if left <= 0:
            return


def mean_over_rows(
    model: nn.Module, layers: Sequence[Sparse], batches: Iterable[Batch], measure: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """For each layer the sum of `measure` of its rows divided by their number, in float64. The model runs in evaluation mode.

    Raises RecipeError where a layer never ran (its weight is used by other means), NotFiniteError.
    """
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def add(weight: Tensor, rows: Tensor) -> None:
        value = measure(rows).double()
        sums[id(weight)] = sums[id(weight)].add_(value) if id(weight) in sums else value
        counts[id(weight)] = counts.get(id(weight), 0) + rows.shape[1]

    with evaluating(model), torch.no_grad(), _observed(model, layers, add):
        for inputs, _ in batches:
            with fitting("train", inputs):
                call(model, inputs)
    for layer in layers:
        _check(layer, sums.get(id(layer.module.weight)))
    return [sums[id(layer.module.weight)] / counts[id(layer.module.weight)] for layer in layers]


def layer_rows(x: Tensor, layer: Layer) -> Iterator[Tensor]:
    """The rows (groups, rows, columns) that make up the layer's output on `x`, some samples at a time."""
    if isinstance(layer, nn.Linear):
        yield x.reshape(1, -1, x.shape[-1])
        return
    space = len(layer.kernel_size)
    x = x if x.dim() == space + 2 else x.unsqueeze(0)
    per_sample = math.prod(layer.kernel_size) * x[0].numel() // math.prod(layer.stride)
    for part in torch.split(x, max(1, _VALUES_AT_ONCE // max(1, per_sample))):
        yield _patches(part, layer)


def _patches(x: Tensor, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    """(batch, in, *space) -> (groups, batch * output positions, kernel positions * in / groups)."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
    for d, (kernel, stride, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + d, (kernel - 1) * dilation + 1, stride)[..., ::dilation]
    space = len(conv.kernel_size)
    x = x.movedim(1, -1).flatten(0, space).flatten(1, space)  # (rows, kernel positions, in)
    x = x.reshape(*x.shape[:2], conv.groups, -1).movedim(2, 0)  # (groups, rows, kernel positions, in / groups)
    return x.flatten(2)


@contextmanager
def _observed(model: nn.Module, layers: Sequence[Sparse], add: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Every module that holds one of the layers' weights reports its rows; the hooks are gone afterwards, whatever happens."""
    wanted = {id(layer.module.weight) for layer in layers}

    def observe(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for rows in layer_rows(tensors((args, kwargs))[0].detach(), module):
            add(module.weight, rows)

    handles = [
        module.register_forward_pre_hook(observe, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, Layer) and id(module.weight) in wanted
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(layer: Sparse, total: Tensor | None) -> None:
    if total is None:
        raise RecipeError(
            "this method needs the input of every layer",
            got=f"{layer.name}, which never ran as a module",
            remedy='protect it, or write method="magnitude"',
        )
    if not bool(torch.isfinite(total).all()):
        raise NotFiniteError(
            "the inputs of every layer must be finite", got=layer.name, remedy="look for NaN or very large numbers before it"
        )
