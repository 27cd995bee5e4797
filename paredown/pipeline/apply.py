"""`apply(task, recipe)`: the only thing that changes a model's structure. It reads the steps in order and does each."""

import functools
from pathlib import Path
from typing import assert_never

from torch import nn

from paredown.core.progress import Progress, silent
from paredown.core.recipe import Recipe, step_name
from paredown.core.steps import Distill, Prune, Quantize, Sparsify, Step
from paredown.core.target import Target
from paredown.core.training import Resume
from paredown.pipeline.steps import distill_resumable, prune_resumable, quantize, sparsify
from paredown.pipeline.stored_steps import in_order, key_of
from paredown.task.task import Task, require_task, unwrapped


def apply(
    task: Task,
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    target: Target | str | None = None,
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | str | Path | None = None,
) -> nn.Module:
    """The model after all steps of the recipe; `task.model` (or `model`) itself for an empty one. Inputs are never touched.

    resume: a folder, or Resume(folder, ...), of this task, model, recipe and seed, in which the model after each step is kept,
    and how far the training in a step got: after the process was killed the same call goes on from there. The caller removes it.
    Raises OutputError for the folder of another model, recipe or seed.
    """
    require_task(task)
    recipe = Recipe.of(recipe)
    start = task.model if model is None else unwrapped(model)
    place = None if resume is None else Resume.of(resume)
    key = "" if place is None else key_of(start, recipe.steps, target, seed)
    works = [(step_name(step), functools.partial(_do, task, step, target, seed, progress)) for step in recipe.steps]
    return in_order(works, start, task.model, resume=place, key=key)


def _do(
    task: Task,
    step: Step,
    target: Target | str | None,
    seed: int,
    progress: Progress,
    model: nn.Module,
    place: Resume | None,
) -> nn.Module:
    match step:
        case Prune():
            return prune_resumable(task, step, model, target, seed=seed, progress=progress, resume=place)
        case Sparsify():
            return sparsify(task, step, model=model, seed=seed, progress=progress)
        case Distill():
            return distill_resumable(task, step, model, seed=seed, progress=progress, resume=place)
        case Quantize():
            return quantize(task, step, model=model, target=target, seed=seed, progress=progress)
        case _:
            assert_never(step)
