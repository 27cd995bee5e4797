"""One score per atom of every dependency group, by any criterion: gathers what a criterion looks at, then asks it.

All scores compare between groups; `importance/aggregate.py` says how. Those of ADDITIVE criteria are in one unit and add up,
so that a goal in MACs is a knapsack, filled by score per MAC saved. Measured on ResNet-20 at 0.7x and 0.5x MACs, batch norms
recalibrated, no training, top-1 on 1,000 validation images (`benchmarks/results/criteria.csv`), per MAC and not: taylor 86 68
and 83 55, taylor_loss 85 59 and 69 43, taylor_second 86 66 and 77 36, fisher 86 67 and 70 50. The others rank as they are:
group_norm 82 64, fpgm 83 61, gradient_loss 82 59, l1 83 58, obd 82 57, activation 79 56, obs 85 55, magnitude 83 54, lamp 81 52,
gradient 80 49, apoz 70 46, bn_scale without its training 70 45, random 68 36.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paredown.core.errors import RecipeError
from paredown.core.steps import Criterion
from paredown.graph.groups import Group, Groups
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut
from paredown.pruning.importance.activation import activation
from paredown.pruning.importance.activations import Statistic, channel_means
from paredown.pruning.importance.aggregate import relative, shared
from paredown.pruning.importance.apoz import apoz
from paredown.pruning.importance.bn_scale import bn_scale
from paredown.pruning.importance.fisher import fisher
from paredown.pruning.importance.fpgm import fpgm
from paredown.pruning.importance.gradient import gradient
from paredown.pruning.importance.gradients import (
    Objective,
    curvatures,
    detached,
    gate_gradients,
    in_pieces,
    output_change,
    task_loss,
    weight_means,
)
from paredown.pruning.importance.group_norm import group_norm, relative_to_best
from paredown.pruning.importance.l1 import l1
from paredown.pruning.importance.lamp import lamp
from paredown.pruning.importance.magnitude import magnitude
from paredown.pruning.importance.obd import obd
from paredown.pruning.importance.obs import obs
from paredown.pruning.importance.random import random
from paredown.pruning.importance.taylor import taylor
from paredown.pruning.importance.taylor_second import taylor_second
from paredown.pruning.select import Scores
from paredown.task.batches import Batch, check_finite, each
from paredown.task.task import Task

BATCHES = 10  # of task.train, at most
PIECE = 16  # samples that are derived together, for the criteria that average squares over as many pieces as there can be
ADDITIVE: frozenset[str] = frozenset({"taylor", "taylor_loss", "taylor_second", "fisher"})
Own = Callable[..., Any]


def scores(
    model: nn.Module, task: Task, groups: Groups, importance: Criterion | Own, *, whole: bool = False, seed: int = 0
) -> list[Scores]:
    """One array (size,) per group, finite. The model is not touched; its copy runs in evaluation mode.

    importance: a criterion by name, or `(model, task, groups) -> one array (size,) per group`, larger = more important.
    whole: groups are to be compared as wholes; a criterion that is relative to its group, and so finds all of them equal, then
    keeps the unit that it has, and the mean over all atoms is 1.
    Raises NotTrainableError where gradients are needed and nothing requires one, BatchError where the loss is needed and
    targets are missing, NotFiniteError where a gradient or a weight isn't finite, RecipeError where a callable returns anything
    else than one finite array (size,) per group, or bn_scale finds no batch norm.
    """
    copy = cut(model, Manifest()).eval()
    if callable(importance):
        return _own(importance, copy, task, groups)
    found = [score.to(torch.float64).cpu() for score in _by_name(importance, copy, task, groups.groups, seed)]
    for group, score in zip(groups.groups, found, strict=True):
        check_finite(score, f"the importance of {group.name} by {importance}")
    return [score.numpy() for score in _scaled(importance, found, whole)]


def _scaled(name: Criterion, found: list[Tensor], whole: bool) -> list[Tensor]:
    """What criteria gave, in each one's own unit, such that groups compare."""
    if name == "random":
        return found
    if whole or name in ADDITIVE or name == "bn_scale":
        return shared(found)
    return [relative_to_best(each) if name == "group_norm" else relative(each) for each in found]


def _by_name(name: Criterion, model: nn.Module, task: Task, groups: Sequence[Group], seed: int) -> list[Tensor]:
    match name:
        case "magnitude" | "l1" | "group_norm" | "fpgm" | "lamp":
            of = {"magnitude": magnitude, "l1": l1, "group_norm": group_norm, "fpgm": fpgm, "lamp": lamp}[name]
            weights = detached(model)
            return [of(group, weights) for group in groups]
        case "bn_scale":
            return bn_scale(groups, detached(model), batch_norm_scales(model))
        case "activation":
            return _watched(model, task, groups, activation)
        case "apoz":
            return _watched(model, task, groups, apoz)
        case "random":
            generator = torch.Generator().manual_seed(seed)
            return [random(group, generator) for group in groups]
        case "taylor" | "taylor_loss" | "taylor_second" | "gradient" | "gradient_loss" | "fisher" | "obd" | "obs":
            task.require_trainable(model)
            return _by_gradient(name, model, task, groups, seed)
        case _:
            assert_never(name)


def _by_gradient(name: str, model: nn.Module, task: Task, groups: Sequence[Group], seed: int) -> list[Tensor]:
    objective: Objective = output_change(task, seed) if name in ("taylor", "gradient") else task_loss(task, name)
    match name:
        case "taylor" | "taylor_loss":
            batches = _few(task) if name == "taylor" else calibration(task)
            return [taylor(gates) for gates in gate_gradients(model, groups, batches, objective)]
        case "gradient" | "gradient_loss":
            absolute = weight_means(model, calibration(task), objective, torch.abs)
            return [gradient(group, absolute) for group in groups]
        case "taylor_second":
            found = curvatures(model, groups, _few(task), objective, torch.Generator().manual_seed(seed))
            return [taylor_second(curvature.gates, curvature.second) for curvature in found]
        case "obd":
            squares, weights = weight_means(model, _few(task), objective, torch.square), detached(model)
            return [obd(group, weights, squares) for group in groups]
        case "fisher":
            return [fisher(gates) for gates in gate_gradients(model, groups, _few(task), objective)]
        case _:
            return [obs(gates) for gates in gate_gradients(model, groups, _few(task), objective)]


def _watched(model: nn.Module, task: Task, groups: Sequence[Group], statistic: Statistic) -> list[Tensor]:
    """Groups whose activations can't be watched score by their weight norms, with the mean of those that can."""
    means = channel_means(model, groups, calibration(task), statistic)
    seen = [m for m in means if m is not None]
    typical = torch.cat(seen).mean() if seen else 1.0
    weights = detached(model)
    return [relative(magnitude(g, weights)) * typical if m is None else m for g, m in zip(groups, means, strict=True)]


def batch_norm_scales(model: nn.Module) -> list[str]:
    """Names of the parameters that are scales of batch norms."""
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return [f"{path}.weight" if path else "weight" for path, norm in norms if norm.weight is not None]


def calibration(task: Task) -> Iterator[Batch]:
    """The training batches that importances look at: the first few."""
    return itertools.islice(each(task.train, "train", task.device), BATCHES)


def _few(task: Task) -> Iterable[Batch]:
    return in_pieces(task, calibration(task), PIECE)


def _own(importance: Own, model: nn.Module, task: Task, groups: Groups) -> list[Scores]:
    rule, found = "an importance of your own must return one array (size,) per group", importance(model, task, groups)
    if not isinstance(found, Iterable):
        raise RecipeError(rule, got=repr(found), remedy="return a list, with an array for each of groups.groups")
    found = list(found)
    if len(found) != len(groups.groups):
        raise RecipeError(rule, got=f"{len(found)} for {len(groups.groups)} groups", remedy="loop over groups.groups")
    return [_checked(values, group, rule) for values, group in zip(found, groups.groups, strict=True)]


def _checked(values: Any, group: Group, rule: str) -> Scores:
    real = values.detach().cpu().double() if isinstance(values, Tensor) and not values.is_complex() else values
    try:
        if np.iscomplexobj(real):
            raise TypeError("complex numbers have no order")
        array = np.asarray(real, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            rule, got=f"{type(values).__name__} for {group.name}", remedy="return arrays of real numbers"
        ) from error
    if array.shape != (group.size,):
        remedy = f"give a score to each of the group's {group.size} atoms (group.size)"
        raise RecipeError(rule, got=f"shape {array.shape} for {group.name}", remedy=remedy)
    if not np.isfinite(array).all():
        raise RecipeError(
            "scores of an importance of your own must be finite",
            got=f"NaN or infinity for {group.name}",
            remedy="guard its division or its logarithm",
        )
    return array
