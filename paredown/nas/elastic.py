"""Subnets of a trained model as a space, derived from the model's own graph. The largest subnet is the model itself.

    width:GROUP    how many atoms of a dependency group (channels, attention heads, hidden units) stay, the most important ones
    depth:BRANCH   0: the residual branch is skipped, 1: it stays
    kernel:LAYER   side of a convolution's kernel, cropped to its centre

Elastic width, depth and kernel after Once-for-All (arXiv:1908.09791), for any model that can be traced. Options ascend, so that
the last of each dimension is the original's. What lies in a branch that is skipped doesn't matter, and the space knows it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from paredown.core.errors import SearchSpaceError, SurgeryError
from paredown.core.report import Barrier
from paredown.core.steps import Widths
from paredown.graph.branches import Branch, Branches, residual_branches
from paredown.graph.equality import check_cut
from paredown.graph.groups import Groups, Keep, dependency_groups
from paredown.graph.kernels import Kernels, croppable_kernels
from paredown.graph.manifest import Manifest
from paredown.graph.probe import culprits
from paredown.graph.surgery import cut
from paredown.graph.units import Scores, Units
from paredown.nas.dimensions import ActiveIf, Ordinal, Value
from paredown.nas.space import Architecture, Space
from paredown.task.batches import apply_tensors, call, evaluating, tensors, unfused
from paredown.task.task import Task

Scoring: TypeAlias = Callable[[Groups], Sequence[Scores]]
_UNCUTTABLE = "the class can't run, or disagrees with the masked original, in a smaller subnet"
_DRAWS = 2  # random subnets that are checked, besides the smallest


@dataclass(frozen=True)
class Parts:
    """What of a model may vary. allowed: counts that each unit of groups may keep, ascending."""

    groups: Groups
    units: Units
    branches: Branches
    kernels: Kernels
    allowed: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Elastic:
    """The subnets of `model`. fixed: what stays as it is in all of them, and why."""

    model: nn.Module
    space: Space
    parts: Parts
    fixed: tuple[Barrier, ...]

    @property
    def largest(self) -> Architecture:
        """The original."""
        return tuple(size - 1 for size in self.space.sizes)

    @property
    def smallest(self) -> Architecture:
        return (0,) * len(self.space.sizes)

    def manifest(self, values: Mapping[str, Value]) -> Manifest:
        """The cut that a subnet is. Raises SearchSpaceError for values that aren't the space's."""
        self.space.architecture(values)
        return _manifest(self.parts, values)

    def subnet(self, values: Mapping[str, Value], model: nn.Module | None = None) -> nn.Module:
        """A plain module of the model's class, cut from `model` (None: the original; or one of its shape, a trained supernet)."""
        return cut(self.model if model is None else model, self.manifest(values))


def elastic(
    task: Task,
    *,
    scores: Scoring | None = None,
    widths: Widths = Widths(floor=0.25),  # noqa: B008 (frozen)
    levels: int = 4,
    depth: bool = True,
    kernel: bool = True,
    seed: int = 0,
) -> Elastic:
    """The elastic space of the task's model.

    scores: importances (size,) of each group's atoms, by which they are sorted, once; None: they go from the last to the first.
    widths, levels: which widths a group may have, and how many of them are options. depth, kernel: whether these vary too.
    Modules that the task protects stay whole. The largest subnet is asserted to equal the model exactly, and the smallest and a
    few random ones the masked model; what makes them differ is fixed instead, with that reason.
    Raises SearchSpaceError where nothing may vary, SurgeryError where the model doesn't equal its own copy, TraceError.
    """
    protect = task.protecting(())
    groups = dependency_groups(task.model, task.inputs, dynamic=task.dynamic, protect=protect)
    branches, kernels = Branches((), ()), Kernels()
    if depth:
        branches = residual_branches(task.model, task.inputs, dynamic=task.dynamic, protect=protect)
    if kernel:
        kernels = croppable_kernels(task.model, task.inputs, protect=protect)
    known = [np.zeros(group.size) for group in groups.groups] if scores is None else list(scores(groups))
    fixed = [*groups.barriers, *branches.barriers, *kernels.barriers]
    start = _parts(task.model, groups, known, branches, kernels, (widths, levels))
    parts = _checked(task, start, known, (widths, levels), fixed, seed)
    found = Elastic(task.model, _space(parts), parts, (*dict.fromkeys(fixed), *_single(parts)))
    _require_identity(found, task)
    return found


def _parts(
    model: nn.Module, groups: Groups, scores: Sequence[Scores], branches: Branches, kernels: Kernels, counts: tuple[Widths, int]
) -> Parts:
    """counts: which widths are allowed, and how many of them are levels."""
    units, (widths, levels) = Units(groups, scores), counts
    return Parts(groups, units, branches, kernels, tuple(_thinned(kept, levels) for kept in units.allowed(widths, model)))


def _thinned(counts: Sequence[int], levels: int) -> tuple[int, ...]:
    """At most so many of the counts, evenly apart, the smallest and the largest among them."""
    if levels < 2:
        raise SearchSpaceError("a width needs at least 2 levels", got=levels, remedy="write levels=4")
    places = np.unique(np.linspace(0, len(counts) - 1, min(levels, len(counts))).round().astype(int))
    return tuple(counts[i] for i in places)


def _space(parts: Parts) -> Space:
    """Raises SearchSpaceError where no part may vary."""
    options = [(name, counts) for name, counts in zip(parts.units.names, parts.allowed, strict=True) if len(counts) > 1]
    dimensions = [
        *(Ordinal(f"width:{name}", counts) for name, counts in options),
        *(Ordinal(f"depth:{branch.name}", (0, 1)) for branch in parts.branches.branches),
        *(Ordinal(f"kernel:{kernel.layer}", kernel.options) for kernel in parts.kernels.kernels),
    ]
    if not dimensions:
        raise SearchSpaceError(
            "an elastic space needs something that may vary", got="nothing", remedy="lower widths.floor, or protect less"
        )
    names = {dimension.name for dimension in dimensions}
    inside = [each for branch in parts.branches.branches for each in _inside(parts, branch) if each in names]
    depths = [f"depth:{branch.name}" for branch in parts.branches.branches for each in _inside(parts, branch) if each in names]
    return Space(tuple(dimensions), tuple(ActiveIf(a, b, (1,)) for a, b in zip(inside, depths, strict=True)))


def _inside(parts: Parts, branch: Branch) -> Iterator[str]:
    """Dimensions that matter only while a branch is there: of what lies in its modules as a whole."""
    modules = tuple(f"{part.module}." for part in branch.dropped)
    for name, unit in zip(parts.units.names, parts.units.members, strict=True):
        if all(s.tensor.startswith(modules) for g in unit for s in parts.groups.groups[g].slices):
            yield f"width:{name}"
    for kernel in parts.kernels.kernels:
        if kernel.tensor.startswith(modules):
            yield f"kernel:{kernel.layer}"
    for other in parts.branches.branches:
        if other is not branch and all(f"{part.module}.".startswith(modules) for part in other.dropped):
            yield f"depth:{other.name}"


def _manifest(parts: Parts, values: Mapping[str, Value]) -> Manifest:
    narrow = parts.groups.manifest(_keep(parts, values))
    skipped = [branch.name for branch in parts.branches.branches if values.get(f"depth:{branch.name}", 1) == 0]
    sides = {k.layer: int(values.get(f"kernel:{k.layer}", k.options[-1])) for k in parts.kernels.kernels}
    return narrow.beside(parts.kernels.manifest(sides)).beside(parts.branches.manifest(skipped))


def _keep(parts: Parts, values: Mapping[str, Value]) -> list[Keep]:
    """Which atoms of each group a subnet has."""
    sizes = [len(scores) for scores in parts.units.scores]
    counts = [int(values.get(f"width:{name}", size)) for name, size in zip(parts.units.names, sizes, strict=True)]
    return parts.units.spread(parts.units.best(counts))


def _checked(
    task: Task, parts: Parts, scores: list[Scores], widths: tuple[Widths, int], fixed: list[Barrier], seed: int
) -> Parts:
    """The parts with which small and random subnets equal the masked model; why others were fixed goes to `fixed`."""
    while True:
        space = _space(parts)
        random = np.random.default_rng(seed)
        smallest = space.values((0,) * len(space.sizes))
        narrowest = {name: 1 if name.startswith("depth:") else value for name, value in smallest.items()}
        trials = [narrowest, smallest, *(space.values(space.sample(random)) for _ in range(_DRAWS))]
        wrong = next((values for values in trials if not _equals(task, parts, values, seed)), None)
        if wrong is None:
            return parts
        groups, branches, kernels = _blamed(task, parts, wrong, seed)
        if not (groups or branches or kernels):
            _check(task, parts, wrong, seed)  # nothing alone is to blame: says what differs
        fixed += [Barrier("forward", name, _UNCUTTABLE) for name in (*_names(parts, groups), *branches, *kernels)]
        rest = parts.groups.without(groups)
        scores = [s for s, group in zip(scores, parts.groups.groups, strict=True) if group in rest.groups]
        left = replace(parts.branches, branches=tuple(b for b in parts.branches.branches if b.name not in branches))
        sides = replace(parts.kernels, kernels=tuple(k for k in parts.kernels.kernels if k.layer not in kernels))
        parts = _parts(task.model, rest, scores, left, sides, widths)


def _blamed(task: Task, parts: Parts, values: Mapping[str, Value], seed: int) -> tuple[list[int], list[str], list[str]]:
    """Groups by number, branches and kernels by name, without which a subnet works: widths first, then what fails beside them."""
    narrow = {name: value for name, value in values.items() if name.startswith("width:")}
    if not _equals(task, parts, narrow, seed):
        return culprits(task.model, parts.groups, _keep(parts, narrow), task.inputs, seed), [], []
    names = [b.name for b in parts.branches.branches if values[f"depth:{b.name}"] == 0]
    branches = [name for name in names if not _equals(task, parts, {**narrow, f"depth:{name}": 0}, seed)]
    sides = {name: value for name, value in values.items() if name.startswith("kernel:")}
    kernels = [name for name, side in sides.items() if not _equals(task, parts, {**narrow, name: side}, seed)]
    return [], branches, [name.removeprefix("kernel:") for name in kernels]


def _names(parts: Parts, groups: Sequence[int]) -> list[str]:
    return [parts.groups.groups[g].name for g in groups]


def _equals(task: Task, parts: Parts, values: Mapping[str, Value], seed: int) -> bool:
    try:
        _check(task, parts, values, seed)
    except SurgeryError:
        return False
    return True


def _check(task: Task, parts: Parts, values: Mapping[str, Value], seed: int) -> None:
    """Raises SurgeryError where a subnet doesn't equal the masked model."""
    manifest = _manifest(parts, values)
    consumers = parts.groups.consumers | parts.kernels.readers
    check_cut(task.model, cut(task.model, manifest), manifest, consumers, task.inputs, seed=seed)


def _single(parts: Parts) -> Iterator[Barrier]:
    """Groups that have one width only."""
    for name, counts in zip(parts.units.names, parts.allowed, strict=True):
        if len(counts) == 1:
            yield Barrier("width", name, "too few channels for a second width: lower floor or round_to")


def _require_identity(found: Elastic, task: Task) -> None:
    """Raises SurgeryError where the largest subnet gives anything else than the model, in any bit."""
    with evaluating(task.model), unfused(), torch.no_grad():
        expected = tensors(call(task.model, apply_tensors(task.inputs, torch.clone)))
        largest = found.subnet(found.space.values(found.largest)).eval()
        given = tensors(call(largest, apply_tensors(task.inputs, torch.clone)))
    if len(given) != len(expected) or not all(torch.equal(a, b) for a, b in zip(given, expected, strict=True)):
        raise SurgeryError(
            "the largest subnet must equal the model exactly", got="another output for the same inputs",
            remedy="make forward deterministic in evaluation mode",
        )  # fmt: skip
