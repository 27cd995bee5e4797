"""Units of selection: a dependency group, or groups that must lose the same fraction of their atoms.

A unit keeps one of a few allowed counts: from its floor to its ceiling, and a multiple of what the runtime likes where it is
large enough.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from paredown.core.errors import RecipeError
from paredown.core.steps import Widths
from paredown.graph.collect import Group, Groups, Keep
from paredown.graph.couple import units
from paredown.graph.propagate import names_of
from paredown.graph.surgery import named_tensors

Scores: TypeAlias = NDArray[np.float64]  # (size,), comparable between groups


class Units:
    """What is selected together: a group, or groups that must lose the same fraction, whose k-th best parts stand or fall as one.

    A group of 96 and one of 32 that are coupled are a unit of 32 entries: three atoms of the one, one of the other.
    """

    def __init__(self, groups: Groups, scores: Sequence[Scores]) -> None:
        bound = {g for together in groups.coupled for g in together}
        self.members = [*groups.coupled, *((g,) for g in range(len(groups.groups)) if g not in bound)]
        self.order = [np.argsort(-s, kind="stable") for s in scores]
        self.scores: list[Scores] = [
            np.sum([scores[g][self.order[g]].reshape(units(groups, unit), -1).sum(1) for g in unit], axis=0)
            for unit in self.members
        ]
        self.positions = [
            max(groups.groups[g].positions * groups.groups[g].size // len(entries) for g in unit)
            for unit, entries in zip(self.members, self.scores, strict=True)
        ]
        self.names = [groups.groups[unit[0]].name for unit in self.members]
        self.groups = groups.groups

    def spread(self, keep: Sequence[Keep]) -> list[Keep]:
        """From units, whose entries are sorted best first, to groups."""
        result: dict[int, Keep] = {}
        for unit, kept in zip(self.members, keep, strict=True):
            for g in unit:
                order = self.order[g]
                result[g] = np.zeros(len(order), dtype=np.bool_)
                result[g][order[np.repeat(kept, len(order) // len(kept))]] = True
        return [result[g] for g in range(len(result))]

    def best(self, counts: Sequence[int]) -> list[Keep]:
        """The choice, by units, that keeps so many of each unit's best."""
        return [np.arange(len(s)) < count for s, count in zip(self.scores, counts, strict=True)]

    def allowed(
        self, widths: Widths, model: nn.Module, sizes: Sequence[int] | None = None, first: Sequence[int] | None = None
    ) -> list[tuple[int, ...]]:
        """Counts that each unit may keep: an atom of several indices (a head) brings that many to the width.

        model: the one whose groups they are.
        sizes: of the groups in the original model, to which floor and ceiling refer (`original_sizes`); None: this is it.
        first: of the groups before any cut, which tell small groups from those that were cut small; None: sizes.
        """
        steps = (widths.round_to // np.gcd(widths.round_to, p) for p in self.positions)
        whole = self._grown(sizes)
        uncut = whole if first is None else self._grown(first)
        limits = [(widths.floor, widths.ceiling)] * len(self.members)
        if widths.floors or widths.ceilings:
            _require_modules(model, widths)
            modules = givers(self.groups, model)
            limits = [widths.limits({name for g in unit for name in modules[g]}) for unit in self.members]
        return [
            allowed_counts(len(s), floor, int(step), ceiling=ceiling, whole=size, first=one)
            for s, step, size, one, (floor, ceiling) in zip(self.scores, steps, whole, uncut, limits, strict=True)
        ]

    def _grown(self, sizes: Sequence[int] | None) -> list[int]:
        """Sizes of groups as those of units."""
        grown = (1.0 if sizes is None else sizes[unit[0]] / len(self.order[unit[0]]) for unit in self.members)
        return [round(len(s) * g) for s, g in zip(self.scores, grown, strict=True)]


def _require_modules(model: nn.Module, widths: Widths) -> None:
    known = dict(model.named_modules(remove_duplicate=False))
    for name in (*widths.floors, *widths.ceilings):
        if name not in known:
            remedy = "see model.named_modules() for the names"
            raise RecipeError("floors and ceilings must name modules of the model", got=name, remedy=remedy)
        if not any(parameter.dim() > 1 for parameter in known[name].parameters()):
            got, remedy = f"{name}, a {type(known[name]).__name__}", "name the layer before it"
            raise RecipeError("floors and ceilings must name modules that give channels", got=got, remedy=remedy)


def givers(groups: Sequence[Group], model: nn.Module) -> list[set[str]]:
    """For each group the modules whose outputs its channels are: those with a weight that makes them. Norms only scale them."""
    first, holders = names_of(model), dict[str, set[str]]()  # of tied weights every module
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.dim() > 1:
            holders.setdefault(first[id(parameter)], set()).add(name.rpartition(".")[0])
    return [{module for s in group.slices if not s.consumer for module in holders.get(s.tensor, ())} for group in groups]


def original_sizes(groups: Groups, model: nn.Module, original: nn.Module) -> list[int]:
    """How many atoms each group had before `original` was cut to `model`, from the shapes of their parameters."""
    before = {name: tuple(t.shape) for name, t in named_tensors(original).items()}
    now = {name: tuple(t.shape) for name, t in named_tensors(model).items()}

    def size(group: Group) -> int:
        growth = (before[s.tensor][s.dimension] / now[s.tensor][s.dimension] for s in group.slices if s.tensor in before)
        return round(group.size * min(growth, default=1.0))

    return [max(group.size, size(group)) for group in groups.groups]


def allowed_counts(
    size: int, floor: float, round_to: int, *, ceiling: float = 1.0, whole: int | None = None, first: int | None = None
) -> tuple[int, ...]:
    """Ascending: from `floor` of the atoms, and one, to `ceiling` of them; multiples of `round_to` where the group ever had more
    than that; `size`, where the ceiling allows it. Where no multiple lies between the two, what the ceiling allows.

    whole: atoms that floor and ceiling are fractions of, where the group had more of them before; None: size.
    first: the most that it ever had; None: whole.
    """
    before = size if whole is None else whole
    least = min(size, max(1, math.ceil(floor * before - 1e-9)))
    most = min(size, max(least, math.floor(ceiling * before + 1e-9)))
    step = round_to if (before if first is None else first) > round_to else 1
    multiples = {count for count in range(step, most + 1, step) if count >= least}
    return tuple(sorted(multiples | ({size} if most == size else set()))) or (most,)
