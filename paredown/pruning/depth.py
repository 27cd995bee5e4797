"""Depth: whole residual branches are dropped, those first that are worth least by the importances of the channels in them.

A branch is as important as all of its channels: without any one group inside it adds nothing, or a constant.
    worth(branch) = mean over the groups inside of the sum of their scores, per MAC saved       by criteria that add up
                  = mean of the scores of all atoms inside                                      by others, and for a threshold
Where no group lies inside as a whole, groups that run through it count as far as they do.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from paredown.core.errors import NothingToPruneError, RecipeError, SurgeryError
from paredown.core.steps import Prune
from paredown.graph.branches import Branch, Branches, residual_branches
from paredown.graph.equality import check_cut
from paredown.graph.groups import Group, Groups
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs
from paredown.pruning.goals import Part
from paredown.pruning.scores import ADDITIVE
from paredown.pruning.select import Scores
from paredown.task.task import Task


@dataclass(frozen=True)
class Candidate:
    """A branch that may be dropped. mean: of the scores inside. worth: what it is ranked by. macs: that it costs by itself."""

    branch: Branch
    mean: float
    worth: float
    macs: int


def prune_depth(
    model: nn.Module, task: Task, config: Prune, groups: Groups, scores: Sequence[Scores], part: Part, seed: int
) -> nn.Module:
    """`model`, of the same class, without the branches that it can best do without; MACs end at the goal or under it.

    scores: (size,) per group. part: which part of the goal is to be reached.
    Raises NothingToPruneError where no branch can be dropped, or dropping all is not enough, and SurgeryError where the result
    doesn't equal the original with its branches zeroed.
    """
    protect = task.protecting(config.protect)
    found = residual_branches(model, task.inputs, dynamic=task.dynamic, protect=protect)
    while True:
        candidates = _candidates(model, task, config, found, groups, scores)
        manifest = found.manifest(_chosen(model, task, config, found, candidates, part))
        pruned = cut(model, manifest)
        try:
            check_cut(model, pruned, manifest, (), task.inputs, seed=seed)
            return pruned
        except SurgeryError:
            bad = [name for name in _names(found, manifest) if not _equals(model, task, found.manifest([name]), seed)]
            if not bad:
                raise
        found = replace(found, branches=tuple(b for b in found.branches if b.name not in bad))


def require_depth_goal(config: Prune) -> None:
    """Raises RecipeError for a goal that depth can't aim at."""
    if config.latency is not None:
        raise RecipeError(
            'scope="depth" aims at MACs or at a threshold', got=f'latency="{config.latency}"', remedy='write macs="0.5x" instead'
        )


def branch_scores(branch: Branch, groups: Sequence[Group], scores: Sequence[Scores]) -> tuple[float, float]:
    """(mean of the scores of the atoms inside, mean over the groups inside of their sums); 0 where there is none."""
    parameters = frozenset(branch.parameters)
    shares = [_share(group, parameters) for group in groups]
    inside = [g for g, share in enumerate(shares) if share == 1] or [g for g, share in enumerate(shares) if share]
    if not inside:
        return 0.0, 0.0
    means, sums = ([shares[g] * of(scores[g]) for g in inside] for of in (np.mean, np.sum))
    sizes = [len(scores[g]) for g in inside]
    return float(np.average(means, weights=sizes)), float(np.mean(sums))


def _share(group: Group, parameters: Collection[str]) -> float:
    """Which part of a group's slices lies in these parameters; buffers go with what they stand beside."""
    counted = [s for s in group.slices if s.tensor in parameters or not _is_buffer(s.tensor)]
    inside = sum(s.tensor in parameters for s in counted)
    return inside / len(counted) if counted else 0.0


def _is_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in {"running_mean", "running_var"}


def _candidates(
    model: nn.Module, task: Task, config: Prune, found: Branches, groups: Groups, scores: Sequence[Scores]
) -> list[Candidate]:
    """Those that cost something, least worth first."""
    whole, additive = count_macs(model, task.inputs), isinstance(config.importance, str) and config.importance in ADDITIVE
    result = []
    for branch in found.branches:
        saved = whole - count_macs(cut(model, branch.manifest()), task.inputs)
        mean, total = branch_scores(branch, groups.groups, scores)
        if saved > 0:
            result.append(Candidate(branch, mean, total / saved if additive else mean, saved))
    if not result:
        raise NothingToPruneError(
            "a model must have residual branches that may be dropped",
            got="; ".join(f"{b.operator} {b.where}: {b.reason}" for b in found.barriers[:3]) or "no residual addition",
            remedy='write scope="global", which removes channels, or protect less',
        )
    return sorted(result, key=lambda c: c.worth)


def _chosen(
    model: nn.Module, task: Task, config: Prune, found: Branches, candidates: Sequence[Candidate], part: Part
) -> list[str]:
    """Names of the branches to drop. Raises NothingToPruneError where that is none, or all are not enough."""
    original = model if part.original is None else part.original
    may_stay = part.fraction < 1 or (part.original is not None and part.original is not model)
    limit = config.limit()
    if limit is None:
        assert config.threshold is not None  # Prune has exactly one goal
        names = [c.branch.name for c in candidates if c.mean < part.fraction * config.threshold]
        if not names and not may_stay:
            raise NothingToPruneError(
                "a pruning step must remove something", got="no branch below the threshold", remedy="raise the threshold"
            )
        return names

    def macs(names: Sequence[str]) -> int:
        return count_macs(cut(model, found.manifest(names)), task.inputs)

    now, whole = macs([]), count_macs(original, task.inputs)
    goal = whole - part.fraction * (whole - limit.absolute(whole))
    if goal >= now:
        if may_stay:
            return []
        raise NothingToPruneError(
            "a goal must lie below what the model costs already", got=f"{config.macs or config.ratio}, it costs {now:.4g}",
            remedy='write a ratio, as in macs="0.5x"',
        )  # fmt: skip
    return _fewest([c.branch.name for c in candidates], macs, goal, whole)


def _fewest(order: Sequence[str], macs: Callable[[Sequence[str]], int], goal: float, whole: int) -> list[str]:
    """Drops in order until the goal is met, then takes back what needn't be dropped, the most important first."""
    names: list[str] = []
    for name in order:
        if macs(names) <= goal:
            break
        names.append(name)
    reached = macs(names)
    if reached > goal:
        raise NothingToPruneError(
            "the goal must be within reach of the branches that may be dropped",
            got=f"{goal / whole:.3g}x asked, {reached / whole:.3g}x reachable",
            remedy=f'ask for at least {reached / whole:.2g}x, or write scope="global"',
        )
    for name in reversed(names[:-1]):
        rest = [other for other in names if other != name]
        if macs(rest) <= goal:
            names = rest
    return names


def _names(found: Branches, manifest: Manifest) -> list[str]:
    return [branch.name for branch in found.branches if set(branch.dropped) & set(manifest.dropped)]


def _equals(model: nn.Module, task: Task, manifest: Manifest, seed: int) -> bool:
    try:
        check_cut(model, cut(model, manifest), manifest, (), task.inputs, seed=seed)
    except SurgeryError:
        return False
    return True
