"""Teaching assistants: a student that is much smaller than its teacher learns more from one of a size between them, which has
learned from the teacher before (Mirzadeh et al., arXiv:1902.03393).

    teacher -> assistant -> ... -> student

Densely (Son et al., arXiv:2009.08825) each learns from the mean of all before it, so that what one got wrong is not
handed on. There teachers are left out at random; here none is.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from paredown.core.errors import RecipeError
from paredown.core.fields import seed_number
from paredown.core.progress import Progress, silent
from paredown.core.steps import Distill
from paredown.core.training import Resume
from paredown.distillation.recover import forget_training
from paredown.distillation.teachers import One, Panel
from paredown.pipeline.steps import distill_resumable, not_diverged
from paredown.task.task import Task, require_task


def distill_chain(
    task: Task,
    models: Sequence[nn.Module],
    config: Distill | Sequence[Distill],
    *,
    teacher: One | None = None,
    dense: bool = False,
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | str | Path | None = None,
) -> list[nn.Module]:
    """The models after each has learned from the one before it, the first from the teacher; the last one is the student.

    models: assistants, from large to small, and the student; none is touched. config: of each, or one for all. teacher: None for
    `task.model`. dense: each learns from all before it. resume: as `distill` takes it; what has learned before the process was
    killed is taken up as well.
    Raises RecipeError where there is nothing but a teacher, or configs don't match the models; and what `distill` raises.
    """
    require_task(task)
    seed_number(seed)
    configs = _configs(models, config)
    place = None if resume is None else Resume.of(resume)
    places = [None if place is None else place.within(str(i)) for i in range(len(models))]
    before: list[One] = [task.model if teacher is None else teacher]
    trained: list[nn.Module] = []
    for i, (model, each, where) in enumerate(zip(models, configs, places, strict=True)):
        asked = Panel(tuple(before)) if dense else before[-1]
        told = _numbered(progress, i, len(models))
        with not_diverged(where, forget_training):
            found = distill_resumable(task, each, model, asked, seed=seed, progress=told, resume=where)
        trained.append(found)
        before.append(found)
    for where in filter(None, [*places, place]):
        forget_training(where.folder)
    return trained


def _configs(models: Sequence[nn.Module], config: Distill | Sequence[Distill]) -> list[Distill]:
    if (
        not isinstance(models, list | tuple | nn.ModuleList)
        or not models
        or not all(isinstance(model, nn.Module) for model in models)
    ):
        raise RecipeError(
            "a chain takes assistants and a student",
            got=type(models).__name__,
            remedy="write distill_chain(task, [middle, small])",
        )
    configs = [config] * len(models) if isinstance(config, Distill) else config
    one_each = isinstance(configs, list | tuple) and len(configs) == len(models)
    if not one_each or not all(isinstance(each, Distill) for each in configs):
        raise RecipeError(
            "a chain takes one Distill, or one for each model",
            got=f"{len(configs)} for {len(models)} models" if isinstance(configs, list | tuple) else type(configs).__name__,
            remedy="write config=Distill()",
        )
    return list(configs)


def _numbered(progress: Progress, index: int, count: int) -> Progress:
    return lambda label, fraction: progress(f"{label} {index + 1} of {count}", fraction)
