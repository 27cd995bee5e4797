"""Structured pruning of a task's model: groups, importances, a choice that meets the goal, the cut, and the check of the cut."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from paredown.core.errors import NothingToPruneError, RecipeError, SurgeryError
from paredown.core.progress import Progress, silent
from paredown.core.steps import ChannelAttention, Prune, Slimming
from paredown.graph.equality import check_cut
from paredown.graph.groups import Groups, dependency_groups
from paredown.graph.manifest import Manifest, attach_, manifest_of
from paredown.graph.probe import culprits
from paredown.graph.surgery import cut
from paredown.graph.units import Units
from paredown.measure.cost import count_macs
from paredown.measure.latency_table import LatencyTable
from paredown.pruning.attention import channel_attention
from paredown.pruning.closing import Goal
from paredown.pruning.depth import prune_depth, require_depth_goal
from paredown.pruning.goals import Job, Latency, Part, choose, share_of
from paredown.pruning.latency import measure_table
from paredown.pruning.scores import scores
from paredown.pruning.select import Keep, Scores
from paredown.pruning.slimming import slim
from paredown.task.batches import Batch, device_of, each, evaluating
from paredown.task.task import Task
from paredown.train.seeds import seeded
from paredown.train.state import Keeping, model_digest

__all__ = ["Latency", "Part", "latency_table", "prune_model"]

WHOLE = Part()


class Learned(NamedTuple):
    """model: what is cut, the one given or a copy that was trained to tell what it can do without. scores: (size,) per group.
    keep: which atoms stay, where a training chose them already. fold: what folding its gates cost (`Manifest.folds`).
    """

    model: nn.Module
    scores: list[Scores]
    keep: list[Keep] | None = None
    fold: tuple[float, float] | None = None


JobOf = Callable[[nn.Module, Sequence[Scores]], Job]


def prune_model(
    model: nn.Module,
    task: Task,
    config: Prune,
    *,
    latency: Latency | None = None,
    table: LatencyTable | None = None,
    part: Part = WHOLE,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """A smaller model of the same class; `model` is not touched. Accuracy is not recovered: that is distillation's work.

    latency: measures a model in ms, on the target; needed where the goal is a latency. table: latencies group by group
    (`latency_table`), for a choice over them too (`config.latency_by`); None: candidates are ordered by MACs.
    part: which part of the goal this cut of a schedule reaches, and where a learned importance is kept. A schedule is a
    loop of the caller's, with training in between.
    MACs end at the goal or just under it; a latency at most at the goal, in its best of a few trials.
    Raises NothingToPruneError where nothing would change or the goal is out of reach, SurgeryError where the cut model
    doesn't equal the masked original, RecipeError where config.protect names no module, and TraceError.
    """
    _check_config(model, config, latency)
    progress("dependency groups", 0.0)
    groups = _groups(model, task, config)

    def job_of(source: nn.Module, found: Sequence[Scores]) -> Job:
        return Job(source, task, config, groups, Units(groups, found), latency, table, part)

    progress("importance", 0.2)
    with seeded(seed):  # a loader that shuffles hands out the same batches
        learned = _importance(model, task, groups, config, job_of, part, seed, progress)
    if config.scope == "depth":
        pruned = prune_depth(learned.model, task, config, groups, learned.scores, part, seed)
    else:
        pruned = _checked_cut(job_of(learned.model, learned.scores), learned.scores, learned.keep, seed)
    with seeded(seed):
        _require_step(task, learned.model, pruned, groups)
    progress("surgery", 1.0)
    return _recorded(pruned, learned)


def latency_table(
    model: nn.Module,
    task: Task,
    config: Prune,
    latency: Latency,
    *,
    known: LatencyTable | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """The latency of `model` with each group alone at a few of the widths that the config allows it.

    known: what was measured of the same model before; only what it lacks is measured.
    """
    _check_config(model, config, latency)
    groups = _groups(model, task, config)
    job = Job(model, task, config, groups, Units(groups, [np.zeros(group.size) for group in groups.groups]))
    return measure_table(job.units, job.allowed(), lambda keep: latency(job.candidate(keep)), known=known, progress=progress)


def _groups(model: nn.Module, task: Task, config: Prune) -> Groups:
    protect = task.protecting(config.protect)
    return _require_groups(dependency_groups(model, task.inputs, dynamic=task.dynamic, protect=protect))


def _importance(
    model: nn.Module,
    task: Task,
    groups: Groups,
    config: Prune,
    job_of: JobOf,
    part: Part,
    seed: int,
    progress: Progress,
) -> Learned:
    keeping = _keeping(model, task, config, part, seed)
    match config.importance:
        case ChannelAttention():
            goal = _goal(model, groups, job_of, part) if closes(config) else None
            if goal is not None and goal.share >= 1:  # an earlier cut of a schedule went further than it had to
                return Learned(model, [np.ones(group.size) for group in groups.groups], groups.all_kept())
            attended = channel_attention(
                model, task, groups, config.importance, goal=goal, seed=seed, progress=progress, keeping=keeping
            )
            progress(f"gates folded, loss {attended.before:.4g} -> {attended.after:.4g}", 0.9)
            return Learned(attended.model, attended.scores, attended.keep, (attended.before, attended.after))
        case Slimming():
            trained = slim(model, task, groups, config.importance, seed=seed, progress=progress, keeping=keeping)
            return Learned(trained, scores(trained, task, groups, "bn_scale", seed=seed))
        case _:
            whole = config.scope == "depth"
            return Learned(model, scores(model, task, groups, config.importance, whole=whole, seed=seed))


def _recorded(pruned: nn.Module, learned: Learned) -> nn.Module:
    """With what folding the gates cost in its manifest."""
    manifest = manifest_of(pruned)
    if learned.fold is None or manifest is None or not np.isfinite(learned.fold).all():
        return pruned
    return attach_(pruned, dataclasses.replace(manifest, folds=(*manifest.folds, learned.fold)))


def closes(config: Prune) -> bool:
    """Whether the importance is learned by gates that close until the goal is met."""
    learned = isinstance(config.importance, ChannelAttention) and config.importance.penalty is None
    return learned and config.scope != "depth" and config.limit() is not None


def _goal(model: nn.Module, groups: Groups, job_of: JobOf, part: Part) -> Goal:
    """What gates close to. A goal that is out of reach, or met, is told before anything is trained."""
    untrained = job_of(model, [np.zeros(group.size) for group in groups.groups])
    share = share_of(untrained)
    whole, narrowest = count_macs(model, untrained.task.inputs), [counts[0] for counts in untrained.allowed()]
    removable = groups.macs(groups.all_kept()) - groups.macs(untrained.units.spread(untrained.units.best(narrowest)))
    share = max(share, 1 - removable / whole)  # of a latency a share may be asked that MACs can't follow

    def chosen(gated: nn.Module, found: Sequence[Scores]) -> list[Keep]:
        with evaluating(gated):  # what is measured is not a model in training
            job = job_of(gated, found)
            return job.units.spread(choose(job))

    return Goal(share, chosen, part.objective)


def _keeping(model: nn.Module, task: Task, config: Prune, part: Part, seed: int) -> Keeping | None:
    """Of the training of a learned importance."""
    if part.resume is None or not isinstance(config.importance, ChannelAttention | Slimming):
        return None
    goal = (config.ratio, config.macs, config.scope, config.widths, config.protect, part.fraction)  # a latency is measured anew
    key = [model_digest(model), model_digest(task.model), repr(config.importance), repr(goal), str(seed)]
    return Keeping(part.resume.within("importance"), " ".join(key))


def _checked_cut(job: Job, found: Sequence[Scores], keep: list[Keep] | None, seed: int) -> nn.Module:
    """Selects, cuts and checks. Where the class can't take this choice, its culprits stay whole and the rest is chosen anew.

    keep: what a training chose already.
    """
    while True:
        groups, inputs = job.groups, job.task.inputs
        chosen, keep = job.units.spread(choose(job)) if keep is None else keep, None
        try:
            manifest = groups.manifest(chosen)
            if not job.may_stay:
                _require_change(manifest)
            pruned = cut(job.model, manifest)
            check_cut(job.model, pruned, manifest, groups.consumers, inputs, seed=seed)
            return pruned
        except SurgeryError:
            bad = culprits(job.model, groups, chosen, inputs, seed)
            if not bad:
                raise
        rest = _require_groups(groups.without(bad))
        found = [s for s, group in zip(found, groups.groups, strict=True) if group in rest.groups]
        job = dataclasses.replace(job, groups=rest, units=Units(rest, found))


def _require_step(task: Task, model: nn.Module, pruned: nn.Module, groups: Groups) -> None:
    """Raises SurgeryError where the user's own training step takes the model, and not what was cut from it.

    It may run modules, or read widths, that the graph of the model's forward doesn't show.
    """
    if task.train_step is None:
        return
    batch = next(each(task.train, "train", device_of(model)))
    error = _step_error(task, pruned, batch)
    alone = ", ".join(barrier.where for barrier in groups.barriers if barrier.operator == "unread")
    if error is not None and _step_error(task, model, batch) is None:
        raise SurgeryError(
            "the task's training step must take a cut model as it takes the original",
            got=f"{type(error).__name__}: {error}",
            remedy=f"name in protect the modules whose outputs it hands to what forward doesn't run{alone and f' ({alone})'}",
        ) from error


def _step_error(task: Task, model: nn.Module, batch: Batch) -> Exception | None:
    """What the training step raises of a copy of the model."""
    assert task.train_step is not None
    try:
        task.train_step(copy.deepcopy(model).train(), batch)
    except Exception as error:  # whatever a user's code raises
        return error
    return None


def _require_change(manifest: Manifest) -> None:
    if not manifest.kept:
        raise NothingToPruneError(
            "a pruning step must remove something",
            got="no score below the threshold",
            remedy="ask for more, or lower floor or round_to",
        )


def _require_groups(groups: Groups) -> Groups:
    if not groups.groups:
        raise NothingToPruneError(
            "a model must have channels that may be removed",
            got=_reasons(groups),
            remedy="see `paredown doctor`, or protect less",
        )
    return groups


def _check_config(model: nn.Module, config: Prune, latency: Latency | None) -> None:
    known = {name for name, _ in model.named_modules()}
    unknown = [name for name in config.protect if name not in known]
    if unknown:
        raise RecipeError(
            "protect must name modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
    if config.scope == "depth":
        require_depth_goal(config)
    if config.latency is not None and latency is None:
        raise RecipeError(
            "a latency goal needs a way to measure a model",
            got=config.latency,
            remedy='give a target, or write macs="0.5x" instead',
        )
    if config.widths.round_to == 0:
        raise RecipeError(
            "round_to=0 is measured in a target",
            got="no target",
            remedy="give a target, or write Widths(round_to=8)",
        )


def _reasons(groups: Groups) -> str:
    found = [f"{b.operator} {b.where}: {b.reason}".replace(" :", ":") for b in groups.barriers]
    return "; ".join(found[:3]) or "no convolution or linear layer"
