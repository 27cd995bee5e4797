"""Pruning as a schedule says: one cut, or several with training between them, each held against the original model."""

import dataclasses
import functools

from torch import nn

from paredown.core.errors import RecipeError
from paredown.core.progress import Progress, silent
from paredown.core.steps import Distill, Prune, Training
from paredown.core.target import Target
from paredown.core.training import Resume
from paredown.distillation.recover import distill_model, objective_of
from paredown.distillation.suited import suited
from paredown.graph.manifest import manifest_of
from paredown.pipeline.evaluate import latency_of
from paredown.pipeline.stored_steps import Work, in_order, key_of
from paredown.pipeline.timings import group_latencies, latency_at, preferred_width
from paredown.pruning.prune import Latency, Part, closes, prune_model
from paredown.task.task import Task


def prune_by_schedule(
    task: Task,
    config: Prune,
    model: nn.Module,
    target: Target | str | None,
    *,
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | None = None,
) -> nn.Module:
    """`model` after all cuts of the schedule; after each but the last it is trained against the task's model.

    target: needed where a latency is the goal, or widths are to be what the target is fast at.
    resume: where the model after each cut and each training is kept, and how far a training got, that of a learned importance
    too. Latencies are measured anew, where they aren't remembered.
    """
    key = "" if resume is None else key_of(model, [config], target, seed)
    where = None if target is None else Target.of(target)
    if where is None and (config.latency is not None or config.widths.round_to == 0):
        raise RecipeError(
            "a latency goal, and widths that the target is fast at, need a target to measure in",
            got="no target",
            remedy='pass target="onnxruntime"',
        )
    if where is not None and config.widths.round_to == 0:
        config = dataclasses.replace(config, widths=dataclasses.replace(config.widths, round_to=preferred_width(where)))
    latency = table = None
    if where is not None and config.latency is not None:
        own = latency_of(task, where)
        latency = latency_at(config.precision, task, where, own)
        config = _of_the_float_model(config, own, model)
        tabled = "table" in config.latency_ways
        table = group_latencies(task, model, config, where, latency, progress) if tabled else None
    recovery = suited(task) if config.schedule.steps > 1 or closes(config) else Distill()
    between = dataclasses.replace(recovery, training=Training(effort=config.schedule.between))

    def cut(part: Part, current: nn.Module, place: Resume | None) -> nn.Module:
        objective = objective_of(task, recovery, current, resume=place) if closes(config) else None
        part = dataclasses.replace(part, resume=place, objective=objective)
        return prune_model(current, task, config, latency=latency, table=table, part=part, seed=seed, progress=progress)

    def train(current: nn.Module, place: Resume | None) -> nn.Module:
        return distill_model(current, task, between, seed=seed, progress=progress, resume=place)

    works: list[Work] = []
    for fraction in config.schedule.fractions():
        part = Part(fraction, model if config.schedule.steps > 1 else None)
        works += [("cut", functools.partial(cut, part)), *([("train", train)] if fraction < 1 else [])]
    return in_order(works, model, model if manifest_of(model) is None else task.model, resume=resume, key=key)


def _of_the_float_model(config: Prune, latency: Latency, model: nn.Module) -> Prune:
    """A goal for int8 files that is relative to the float file, in ms: the two aren't measured by the same yardstick."""
    limit = config.limit()
    if config.precision == "fp32" or limit is None or not limit.relative:
        return config
    return dataclasses.replace(config, latency=f"{limit.absolute(latency(model)):.6g} ms")
