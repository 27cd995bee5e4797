"""Sparsity that stays in shape: single weights become zero, in a copy; shapes, class and speed stay what they were.

`magnitude` and sensitivities rank weights within the whole model or within each layer, as the scope says. `wanda` ranks within
each row and `sparsegpt` within a block of columns, whatever the scope: that is what these methods are. A pattern (2:4) ranks
within each run of inputs, with any of them.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from paredown.core.errors import NothingToPruneError, RecipeError
from paredown.core.progress import Progress, silent
from paredown.core.steps import Sparsify
from paredown.pruning.importance.gradients import output_change, task_loss, weight_means
from paredown.pruning.sparsity.choose import lowest, lowest_of_all, lowest_of_rows
from paredown.pruning.sparsity.inputs import gram, mean_over_rows, samples, square_sum
from paredown.pruning.sparsity.layers import Sparse, as_matrices, from_matrices, sparse_layers
from paredown.pruning.sparsity.nm import nm_mask, parse, runs
from paredown.pruning.sparsity.sensitivity import few_samples, sensitivity
from paredown.pruning.sparsity.sparsegpt import solve
from paredown.pruning.sparsity.wanda import wanda
from paredown.task.batches import check_finite
from paredown.task.task import Task
from paredown.train.masks import mark_sparse_, sparse_weights

_COLUMNS_AT_ONCE = 128  # of which SparseGPT chooses the mask together
_BYTES_AT_ONCE = 512 << 20  # of SparseGPT's matrices; layers beyond are solved in a further pass over the data
_PASSES = (
    8  # at least, so that later layers are solved for the inputs that they will get (stories260K, 0.7: 130 with 1, 94 with 35)
)


def sparsify_model(model: nn.Module, task: Task, config: Sparsify, *, seed: int = 0, progress: Progress = silent) -> nn.Module:
    """A copy of the model in evaluation mode with more of its weights at zero; they stay zero while `fit_` trains the copy.

    seed: of the random direction that sensitivity looks in.

    What was made sparse before stays zero and counts: a ratio is of all weights that may become sparse.
    Raises NothingToPruneError where no weight would become zero, RecipeError where config.protect names no module, where a
    layer would keep no weight at all, or where a method can't see a layer's input; NotFiniteError.
    """
    result = copy.deepcopy(model).eval()
    layers = _require(sparse_layers(result, task.protecting(config.protect)))
    before = _zeros(layers)
    if config.method == "sparsegpt":
        _solve_(result, layers, task, config, progress)
    else:
        scores = _scores(result, layers, task, config, seed)
        for layer, score in zip(layers, scores, strict=True):
            check_finite(score, f"{config.method} of {layer.weight_name}")
        for layer, mask in zip(layers, _masks(scores, layers, config), strict=True):
            layer.weight.masked_fill_(mask, 0)
    _check(layers, before, config)
    progress(_label(config), 1.0)
    return mark_sparse_(result, [layer.weight_name for layer in layers])


def _scores(model: nn.Module, layers: Sequence[Sparse], task: Task, config: Sparsify, seed: int) -> list[Tensor]:
    """One score a weight, in the shape of the weights; what is lowest goes."""
    weights = [layer.weight.float() for layer in layers]
    match config.method:
        case "sensitivity" | "sensitivity_loss":
            loss = config.method == "sensitivity_loss"
            objective = task_loss(task, config.method, 'method="sensitivity"') if loss else output_change(task, seed)
            scratch = copy.deepcopy(model)  # of which all parameters will require a gradient
            squares = weight_means(scratch, few_samples(task, config.samples), objective, torch.square)
            return sensitivity(weights, [squares.get(layer.weight_name) for layer in layers])
        case "wanda":
            norms = mean_over_rows(model, layers, samples(task, config.samples), square_sum)
            return [_wanda(w, s, layer) for w, s, layer in zip(weights, norms, layers, strict=True)]
        case _:
            return [weight.abs() for weight in weights]


def _wanda(weight: Tensor, mean_square: Tensor, layer: Sparse) -> Tensor:
    matrices = as_matrices(weight, layer.module)  # (groups, out, positions, in)
    return from_matrices(wanda(matrices.flatten(2), mean_square[:, None]), layer.module)


def _masks(scores: Sequence[Tensor], layers: Sequence[Sparse], config: Sparsify) -> Sequence[Tensor]:
    """One mask a layer, true where a weight goes."""
    if config.threshold is not None:
        return [score < config.threshold for score in scores]
    if config.ratio is not None and config.method != "wanda" and config.scope == "global":
        return lowest_of_all(scores, config.ratio)
    return [_layer_mask(score, layer, config) for score, layer in zip(scores, layers, strict=True)]


def _layer_mask(scores: Tensor, layer: Sparse, config: Sparsify) -> Tensor:
    if config.pattern is not None:
        return from_matrices(nm_mask(as_matrices(scores, layer.module), *parse(config.pattern)), layer.module)
    assert config.ratio is not None  # thresholds are dealt with, and one of the three is given
    if config.method == "wanda":
        return lowest_of_rows(scores.flatten(1), config.ratio).view(scores.shape)
    return lowest(scores, round(config.ratio * scores.numel()))


def _solve_(model: nn.Module, layers: Sequence[Sparse], task: Task, config: Sparsify, progress: Progress) -> None:
    """SparseGPT, some layers at a time: the inputs of later ones are those that the sparse earlier ones give."""
    held, done = sparse_weights(model), 0
    for some in _portions(layers):
        hessians = mean_over_rows(model, some, samples(task, config.samples), gram)
        for layer, hessian in zip(some, hessians, strict=True):
            layer.weight.copy_(_solved(layer, hessian, held.get(layer.weight_name), config))
            done += 1
            progress(_label(config), done / len(layers))


def _solved(layer: Sparse, hessian: Tensor, held: Tensor | None, config: Sparsify) -> Tensor:
    """The layer's new weight. hessian (groups, columns, columns)."""
    matrices = as_matrices(layer.weight, layer.module)  # (groups, out, positions, in)
    zero = torch.zeros_like(matrices, dtype=torch.bool) if held is None else as_matrices(held, layer.module)
    _, _, positions, inputs = matrices.shape
    if config.pattern is None:
        spans = runs(positions * inputs, 1, _COLUMNS_AT_ONCE)
    else:
        spans = runs(inputs, positions, parse(config.pattern)[1])
    parts = zip(matrices.flatten(2), hessian, zero.flatten(2), strict=True)
    solved = [solve(weight, square, spans, _choice(config), zero=none) for weight, square, none in parts]
    return from_matrices(torch.stack(solved), layer.module)


def _choice(config: Sparsify) -> Callable[[Tensor], Tensor]:
    """SparseGPT's: from the saliencies of a few columns the mask."""
    pattern, threshold, ratio = config.pattern, config.threshold, config.ratio
    if pattern is not None:
        return lambda saliency: nm_mask(saliency, *parse(pattern))
    if threshold is not None:
        return lambda saliency: saliency < threshold
    assert ratio is not None  # one of the three is given
    return lambda saliency: lowest(saliency, round(ratio * saliency.numel()))


def _portions(layers: Sequence[Sparse]) -> Iterator[list[Sparse]]:
    """The layers in order, at most an eighth of them at a time, and as many as have room for their matrices."""
    some: list[Sparse] = []
    room, most = _BYTES_AT_ONCE, math.ceil(len(layers) / _PASSES)
    for layer in layers:
        groups, _, positions, inputs = as_matrices(layer.weight, layer.module).shape
        size = 8 * groups * (positions * inputs) ** 2
        if some and (size > room or len(some) == most):
            yield some
            some, room = [], _BYTES_AT_ONCE
        some.append(layer)
        room -= size
    yield some


def _require(layers: list[Sparse]) -> list[Sparse]:
    if not layers:
        raise NothingToPruneError(
            "a model must have weights that may become zero",
            got="no linear layer and no convolution that isn't protected",
            remedy="protect less; other kinds of layer can't be made sparse",
        )
    return layers


def _check(layers: Sequence[Sparse], before: int, config: Sparsify) -> None:
    """More zeros than before, and no layer without any weight."""
    if _zeros(layers) <= before:
        total = sum(layer.weight.numel() for layer in layers)
        goal = ", ".join(f"{k}={v}" for k in ("ratio", "threshold", "pattern") if (v := getattr(config, k)) is not None)
        raise NothingToPruneError(
            "a step for sparsity must make a weight zero",
            got=f"{goal} of {total} weights, {before} of which are zero already",
            remedy="ask for more" if config.threshold is None else "raise the threshold",
        )
    empty = [layer.name for layer in layers if not bool(layer.weight.any())]
    if empty:
        raise RecipeError(
            "every layer must keep a weight that isn't zero",
            got=f"none in {empty[0]}",
            remedy='write scope="uniform", ask for less, or protect it' if config.threshold is None else "lower the threshold",
        )


def _zeros(layers: Sequence[Sparse]) -> int:
    return sum(int((layer.weight == 0).sum()) for layer in layers)


def _label(config: Sparsify) -> str:
    return f"sparsity, {config.method}"
