"""Structured pruning of a task's model: groups, importances, a choice that meets the goal, the cut, and the check of the cut."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from paredown.core.errors import NothingToPruneError, RecipeError, SurgeryError
from paredown.core.progress import Progress, silent
from paredown.core.steps import ChannelAttention, Prune, Slimming, Widths
from paredown.graph.equality import check_cut
from paredown.graph.groups import Groups, dependency_groups
from paredown.graph.manifest import Manifest
from paredown.graph.probe import culprits
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs
from paredown.pruning.attention import channel_attention
from paredown.pruning.scores import ADDITIVE, scores
from paredown.pruning.select import Keep, Scores, allowed_counts, below, select
from paredown.pruning.slimming import slim
from paredown.task.task import Task

_LATENCY_TRIALS = 7  # each cuts a model and measures it in its runtime
Latency = Callable[[nn.Module], float]


def prune_model(
    model: nn.Module,
    task: Task,
    config: Prune,
    *,
    latency: Latency | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """A smaller model of the same class; `model` is not touched. Accuracy is not recovered: that is distillation's work.

    latency: measures a model in ms, on the target; needed where the goal is a latency.
    MACs end at the goal or just under it; a latency at most at the goal, in its best of a few trials.
    Raises NothingToPruneError where nothing would change or the goal is out of reach, SurgeryError where the cut model
    doesn't equal the masked original, RecipeError where config.protect names no module, and TraceError.
    """
    _check_config(model, config, latency)
    progress("dependency groups", 0.0)
    protect = tuple(dict.fromkeys((*task.protect, *config.protect)))
    groups = _require_groups(dependency_groups(model, task.inputs, dynamic=task.dynamic, protect=protect))
    progress("importance", 0.2)
    source, found = _importance(model, task, groups, config, seed, progress)
    pruned = _checked_cut(source, task, config, groups, found, latency, seed)
    progress("surgery", 1.0)
    return pruned


def _importance(
    model: nn.Module, task: Task, groups: Groups, config: Prune, seed: int, progress: Progress
) -> tuple[nn.Module, list[Scores]]:
    """What is cut, `model` itself or a copy that was trained to tell what it can do without, and scores (size,) per group."""
    match config.importance:
        case ChannelAttention():
            attended = channel_attention(model, task, groups, config.importance, seed=seed, progress=progress)
            return attended.model, attended.scores
        case Slimming():
            trained = slim(model, task, groups, config.importance, seed=seed, progress=progress)
            return trained, scores(trained, task, groups, "bn_scale", seed=seed)
        case _:
            return model, scores(model, task, groups, config.importance, seed=seed)


def _checked_cut(
    model: nn.Module, task: Task, config: Prune, groups: Groups, found: Sequence[Scores], latency: Latency | None, seed: int
) -> nn.Module:
    """Selects, cuts and checks. Where the class can't take this choice, its culprits stay whole and the rest is chosen anew."""
    while True:
        units = Units(groups, found)
        chosen = units.spread(_choose(model, task, config, groups, units, latency))
        try:
            manifest = groups.manifest(chosen)
            _require_change(manifest)
            pruned = cut(model, manifest)
            check_cut(model, pruned, manifest, groups.consumers, task.inputs, seed=seed)
            return pruned
        except SurgeryError:
            bad = culprits(model, groups, chosen, task.inputs, seed)
            if not bad:
                raise
        rest = groups.without(bad)
        found = [s for s, group in zip(found, groups.groups, strict=True) if group in rest.groups]
        groups = _require_groups(rest)


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


class Units:
    """What is selected together: a group, or groups that must lose equally many atoms, whose k-th best stand or fall as one."""

    def __init__(self, groups: Groups, scores: Sequence[Scores]) -> None:
        bound = {g for together in groups.coupled for g in together}
        self.members = [*groups.coupled, *((g,) for g in range(len(groups.groups)) if g not in bound)]
        self.order = [np.argsort(-s, kind="stable") for s in scores]
        self.scores: list[Scores] = [np.sum([scores[g][self.order[g]] for g in unit], axis=0) for unit in self.members]
        self.positions = [max(groups.groups[g].positions for g in unit) for unit in self.members]

    def spread(self, keep: Sequence[Keep]) -> list[Keep]:
        """From units, whose entries are sorted best first, to groups."""
        result: dict[int, Keep] = {}
        for unit, kept in zip(self.members, keep, strict=True):
            for g in unit:
                result[g] = np.zeros_like(kept)
                result[g][self.order[g][kept]] = True
        return [result[g] for g in range(len(result))]

    def allowed(self, widths: Widths) -> list[tuple[int, ...]]:
        """Counts that each unit may keep: an atom of several indices (a head) brings that many to the width."""
        steps = (widths.round_to // np.gcd(widths.round_to, p) for p in self.positions)
        return [allowed_counts(len(s), widths.floor, int(step)) for s, step in zip(self.scores, steps, strict=True)]


def _choose(model: nn.Module, task: Task, config: Prune, groups: Groups, units: Units, latency: Latency | None) -> list[Keep]:
    """Which entries of each unit stay."""
    allowed = units.allowed(config.widths)
    limit = config.limit()
    if limit is None:
        assert config.threshold is not None  # Prune has exactly one goal
        return below(units.scores, config.threshold, allowed)
    whole = count_macs(model, task.inputs)
    other = whole - groups.macs(groups.all_kept())  # of products that the labels don't reach, attention for one

    def macs(keep: Sequence[Keep]) -> float:
        return other + groups.macs(units.spread(keep))

    additive = isinstance(config.importance, str) and config.importance in ADDITIVE
    worth = _per_mac(units, macs) if additive else units.scores
    pick = functools.partial(select, worth, macs, allowed=allowed, scope=config.scope)
    if config.latency is None:
        return pick(_changing(limit.absolute(whole), whole, config))
    assert latency is not None  # _check_config
    baseline = latency(model)
    goal = _changing(limit.absolute(baseline), baseline, config)
    least = macs([np.arange(len(s)) < a[0] for s, a in zip(units.scores, allowed, strict=True)])
    return _by_latency(
        pick, lambda keep: latency(cut(model, groups.manifest(units.spread(keep)))), goal, baseline, (least, whole)
    )


def _per_mac(units: Units, macs: Callable[[Sequence[Keep]], float]) -> list[Scores]:
    """Scores that add up, per MAC that an atom of the unit saves: the order in which a knapsack is filled.

    ResNet-20 at 0.5x MACs, batch norms recalibrated: 69 % top-1, against 47 % by the scores alone, and 63 % by scores that are
    normalized group by group (1,000 validation images).
    """
    whole = [np.ones(len(s), dtype=np.bool_) for s in units.scores]
    full, result = macs(whole), list[Scores]()
    for u, values in enumerate(units.scores):
        half = np.arange(len(values)) < len(values) - max(1, len(values) // 2)
        saved = full - macs([*whole[:u], half, *whole[u + 1 :]])
        result.append(values * (len(values) - half.sum()) / max(saved, 1.0))
    return result


def _by_latency(
    pick: Callable[[float], list[Keep]],
    measure: Callable[[Sequence[Keep]], float],
    goal: float,
    baseline: float,
    bounds: tuple[float, float],
) -> list[Keep]:
    """Bisects over MACs, since a measurement is dear and noisy: the largest of the models tried that is fast enough.

    bounds: the least MACs within reach, and those of the whole model.
    """
    low, high = bounds
    best = pick(low)
    fastest = measure(best)
    if fastest > goal:
        raise NothingToPruneError(
            "the latency must be within reach of what may be removed",
            got=f"{goal / baseline:.3g}x asked, {fastest / baseline:.3g}x reachable",
            remedy="ask for less, lower floor or round_to, or protect less",
        )
    for _ in range(_LATENCY_TRIALS - 1):
        middle = (low + high) / 2
        keep = pick(middle)
        low, high, best = (middle, high, keep) if measure(keep) <= goal else (low, middle, best)
    return best


def _changing(goal: float, whole: float, config: Prune) -> float:
    """The goal. Raises NothingToPruneError where the model meets it as it is."""
    if goal >= whole:
        raise NothingToPruneError(
            "a goal must lie below what the model costs already", got=f"{config.macs or config.latency}, it costs {whole:.4g}",
            remedy='write a ratio, as in macs="0.5x"',
        )  # fmt: skip
    return goal


def _check_config(model: nn.Module, config: Prune, latency: Latency | None) -> None:
    known = {name for name, _ in model.named_modules()}
    unknown = [name for name in config.protect if name not in known]
    if unknown:
        raise RecipeError(
            "protect must name modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
    if config.latency is not None and latency is None:
        raise RecipeError(
            "a latency goal needs a way to measure a model",
            got=config.latency,
            remedy='give a target, or write macs="0.5x" instead',
        )


def _reasons(groups: Groups) -> str:
    found = [f"{b.operator} {b.where}: {b.reason}".replace(" :", ":") for b in groups.barriers]
    return "; ".join(found[:3]) or "no convolution or linear layer"
