"""`apply(task, recipe)`: the only thing that changes a model's structure. It reads the steps in order and does each."""

from typing import assert_never

from torch import nn

from paredown.core.progress import Progress, silent
from paredown.core.recipe import Recipe
from paredown.core.steps import Distill, Prune, Quantize, Sparsify, Step
from paredown.core.target import Target
from paredown.pipeline.steps import distill, prune, quantize, sparsify
from paredown.task.task import Task


def apply(
    task: Task,
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    target: Target | str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """The model after all steps of the recipe; `task.model` (or `model`) itself for an empty one. Inputs are never touched."""
    result = task.model if model is None else model
    for step in recipe.steps:
        result = _do(task, step, result, target, seed, progress)
    return result


def _do(task: Task, step: Step, model: nn.Module, target: Target | str | None, seed: int, progress: Progress) -> nn.Module:
    match step:
        case Prune():
            return prune(task, step, model=model, target=target, seed=seed, progress=progress)
        case Sparsify():
            return sparsify(task, step, model=model, progress=progress)
        case Distill():
            return distill(task, step, model=model, seed=seed, progress=progress)
        case Quantize():
            return quantize(task, step, model=model, target=target, progress=progress)
        case _:
            assert_never(step)
