"""`apply(task, recipe)`: the only thing that changes a model's structure. It reads the steps in order and does each."""

from pathlib import Path
from typing import assert_never

from torch import nn

from paredown.core.progress import Progress, silent
from paredown.core.recipe import Recipe, step_name
from paredown.core.steps import Distill, Prune, Quantize, Sparsify, Step
from paredown.core.target import Target
from paredown.core.training import Resume
from paredown.distillation.recover import forget_training
from paredown.pipeline.checkpoint import load_checkpoint, save_checkpoint
from paredown.pipeline.steps import distill_resumable, prune, quantize, sparsify
from paredown.task.task import Task, require_task

_MODEL = "model"


def apply(
    task: Task,
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    target: Target | str | None = None,
    seed: int = 0,
    progress: Progress = silent,
    resume: Path | None = None,
) -> nn.Module:
    """The model after all steps of the recipe; `task.model` (or `model`) itself for an empty one. Inputs are never touched.

    resume: a folder of this task, model, recipe and seed, in which the model after each step is kept, and how far a distillation
    got: after the process was killed the same call goes on from there. The caller removes it.
    """
    require_task(task)
    recipe = Recipe.of(recipe)
    result, done = (task.model if model is None else model), 0
    if resume is not None:
        result, done = _taken_up(task, recipe, resume, result)
    for index, step in enumerate(recipe.steps[done:], done):
        place = None if resume is None else _place(resume, index, step)
        result = _do(task, step, result, target, seed, progress, place)
        if place is not None:
            save_checkpoint(result, place / _MODEL)
            forget_training(place)
    return result


def _place(folder: Path, index: int, step: Step) -> Path:
    return folder / f"{index}-{step_name(step)}"


def _taken_up(task: Task, recipe: Recipe, folder: Path, model: nn.Module) -> tuple[nn.Module, int]:
    """The model after the last step that was finished, and how many were; the model given, where none was."""
    for index, step in reversed(list(enumerate(recipe.steps))):
        found = _place(folder, index, step) / _MODEL
        if found.exists():
            return load_checkpoint(found, task.model), index + 1
    return model, 0


def _do(
    task: Task,
    step: Step,
    model: nn.Module,
    target: Target | str | None,
    seed: int,
    progress: Progress,
    place: Path | None,
) -> nn.Module:
    match step:
        case Prune():
            return prune(task, step, model=model, target=target, seed=seed, progress=progress)
        case Sparsify():
            return sparsify(task, step, model=model, progress=progress)
        case Distill():
            resume = None if place is None else Resume(place)
            return distill_resumable(task, step, model, seed=seed, progress=progress, resume=resume)
        case Quantize():
            return quantize(task, step, model=model, target=target, progress=progress)
        case _:
            assert_never(step)
