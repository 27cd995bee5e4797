"""Which groups the model's own class can lose: cut some of each, run the class, compare it with the masked original.

Widths may be literals in forward, or attributes that we don't know. We never guess those: what can't be cut is a barrier.
Groups that can only lose the same fraction (the halves of `chunk(2)` in ShuffleNet) are found by trying that: `couple.py`.
"""

import re
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from paredown.core.errors import SurgeryError
from paredown.graph.collect import Groups, Keep
from paredown.graph.couple import find_coupled, same_fraction
from paredown.graph.equality import compare_recut
from paredown.graph.places import Dimension
from paredown.graph.surgery import named_tensors
from paredown.graph.twin import SIDE, Twin, full_twin, late_where_possible, light_twin, random_twin, runs, training_too
from paredown.task.batches import Inputs

_MANY = 30_000_000  # elements of a model that is probed in float32
Unit: TypeAlias = tuple[int, ...]  # a group by itself, or groups that can only be lost together
Kind: TypeAlias = list[Unit]


@dataclass(frozen=True)
class Findings:
    """uncuttable: numbers of groups that must stay whole. coupled: sets of groups that must lose the same fraction."""

    uncuttable: tuple[int, ...] = ()
    coupled: tuple[tuple[int, ...], ...] = ()


def probe(
    model: nn.Module, groups: Groups, inputs: Inputs, literal: frozenset[int], seed: int = 0, *, training: bool = False
) -> Findings:
    """Tries all groups together; and those of which the class may hold a number in such parts that any two kinds are told apart.

    literal: atoms whose number the class may hold. What `groups.coupled` holds already is tried together throughout.
    training: a cut must run in training mode too, where the model does: it has parts that evaluation doesn't run.
    Mostly all goes well: that is found out on a small twin. Only where something fails is a twin of full size bisected.
    """
    if not groups.groups:
        return Findings()
    numbers, bound = range(len(groups.groups)), {g for together in groups.coupled for g in together}
    suspect = {g for g in numbers if not literal.isdisjoint(groups.groups[g].atoms)} | bound
    kinds = _kinds([*groups.coupled, *((g,) for g in numbers if g not in bound)], groups, suspect)
    if _all_go(model, groups, inputs, (kinds, suspect), seed, training=training):
        return Findings((), groups.coupled)
    full = _full_twin(model, inputs, seed)
    full = training_too(full) if training else full
    known = dict[bytes, bool]()
    return _explore(groups, kinds, lambda: _trials(groups, full, seed, known), suspect)


def _all_go(
    model: nn.Module, groups: Groups, inputs: Inputs, tried: tuple[list[Kind], set[int]], seed: int, *, training: bool
) -> bool:
    """Whether all goes well on a small twin, which takes no memory afterwards. tried: kinds, and the suspects among groups."""
    kinds, suspect = tried
    for side in (SIDE, None):  # some classes take images of one size only
        twin = light_twin(model, inputs, seed, torch.float32, samples=2 if training else 1, side=side, late=True)
        twin = training_too(twin) if training else twin
        if training and side is not None and not twin.trains:
            continue
        few, many = _trials(groups, twin, seed)
        if all(trial.works(_members(chosen)) for trial, chosen in _rounds(groups, kinds, few, many, suspect)):
            return True
        if side is not None and runs(twin):
            break
    return False


def culprits(model: nn.Module, groups: Groups, keep: Sequence[Keep], inputs: Inputs, seed: int = 0) -> list[int]:
    """Numbers of the groups without whose part the cut `keep` works: what is right for some atoms may be wrong for others."""
    trial = _Trial(groups, full_twin(model, inputs, seed), keep)
    numbers = [g for g, k in enumerate(keep) if not k.all()]
    bound = {g for together in groups.coupled for g in together}
    alone = _guilty([[unit] for unit in (*((g,) for g in numbers if g not in bound), *groups.coupled)], trial)
    return sorted(alone + _greedy([g for g in numbers if g not in alone], trial, groups.coupled))


def _full_twin(model: nn.Module, inputs: Inputs, seed: int) -> Twin:
    """Of the inputs' own size; in float64 and of 2 samples, unless the model is large."""
    large = sum(tensor.numel() for tensor in named_tensors(model).values()) > _MANY
    for dtype in (torch.float64, torch.float32)[large:]:
        twin = light_twin(model, inputs, seed, dtype, samples=1 if large else 2)
        if tried := late_where_possible(twin):
            return tried
    return random_twin(model, inputs, seed)


def _explore(groups: Groups, kinds: list[Kind], fresh: Callable[[], tuple["_Trial", "_Trial"]], suspect: set[int]) -> Findings:
    """Finds what fails and what can only be lost together. Mostly the rest works at once; where it doesn't, all are tried.

    fresh: makes the trials, a third and two thirds of every group.
    """
    doubtful = [kind for kind in kinds if not suspect.isdisjoint(kind[0])]
    few, many = fresh()
    guilty = _failing(groups, doubtful, few, many, suspect)
    coupled = [together for together in groups.coupled if guilty.isdisjoint(together)]
    taken = [g for g in range(len(groups.groups)) if g not in guilty]

    def joins(together: tuple[int, ...]) -> bool:
        works = few.tied(together, taken)
        taken.extend(together if works else ())
        return works

    found = find_coupled(sorted(guilty), groups, joins)
    for together in found:
        many.tie(together)
    if (found or few.works(taken)) and many.works(taken):
        return _findings(guilty, [*coupled, *found])
    return _explore_all(groups, kinds, *fresh(), suspect)


def _explore_all(groups: Groups, kinds: list[Kind], few: "_Trial", many: "_Trial", suspect: set[int]) -> Findings:
    """Bisects everything that fails, tries what can only be lost together by itself, and leaves out what fails beside others."""
    guilty = _failing(groups, kinds, few, many, suspect)
    coupled = [together for together in groups.coupled if guilty.isdisjoint(together)]
    coupled += find_coupled(sorted(guilty), groups, lambda together: all(trial.tied(together) for trial in (few, many)))
    guilty -= {g for together in coupled for g in together}
    for trial in (few, many) if guilty or coupled else ():
        guilty.update(_greedy([g for g in range(len(groups.groups)) if g not in guilty], trial, coupled))
    return _findings(guilty, coupled)


def _failing(groups: Groups, kinds: list[Kind], few: "_Trial", many: "_Trial", suspect: set[int]) -> set[int]:
    """Groups of these kinds that fail by themselves."""
    guilty: set[int] = set()
    for trial, chosen in _rounds(groups, kinds, few, many, suspect):
        left = ([unit for unit in kind if guilty.isdisjoint(unit)] for kind in chosen)
        guilty.update(_guilty([kind for kind in left if kind], trial))
    return guilty


def _findings(guilty: set[int], coupled: Sequence[tuple[int, ...]]) -> Findings:
    """guilty: by themselves; those that are coupled aren't any more."""
    alone = guilty - {g for together in coupled for g in together}
    return Findings(tuple(sorted(alone)), tuple(together for together in coupled if not alone.intersection(together)))


def _rounds(
    groups: Groups, kinds: list[Kind], few: "_Trial", many: "_Trial", suspect: set[int]
) -> list[tuple["_Trial", list[Kind]]]:
    """Two thirds of everything. Where some are suspect, a third of everything too; of some of them a third and of the others
    two thirds, so that any two kinds once lose different parts; and factors alone.
    """
    open_to_doubt = [kind for kind in kinds if not suspect.isdisjoint(kind[0])]
    if not open_to_doubt:
        return [(many, kinds)]
    bits = range(max(len(open_to_doubt) - 1, 0).bit_length())
    mixed = [few.mixed_with(many, _members([kind for k, kind in enumerate(open_to_doubt) if k >> bit & 1])) for bit in bits]
    factors = set(_factors(groups))
    alone = [[kind] for kind in open_to_doubt if len(kind[0]) == 1 and not factors.isdisjoint(kind[0])]
    return [(few, kinds), (many, kinds), *((trial, open_to_doubt) for trial in mixed), *((few, chosen) for chosen in alone)]


def _kinds(units: Sequence[Unit], groups: Groups, suspect: set[int]) -> list[Kind]:
    """Units that stand in the same places of layers of the same name, but for numbers in it: the blocks of a stage.
    What is not suspect comes first."""
    place: dict[Dimension, list[int]] = {}
    for dimension, extent in groups.extents.items():
        place[dimension] = [group for group, _, _ in extent.owners]

    def key(g: int) -> Hashable:
        slices = groups.groups[g].slices
        where = tuple((re.sub(r"\d+", "#", s.tensor), s.dimension, place[s.tensor, s.dimension].index(g)) for s in slices)
        return groups.groups[g].size, g in suspect, where

    kinds: dict[Hashable, Kind] = {}
    for unit in units:
        kinds.setdefault(tuple(key(g) for g in unit), []).append(unit)
    return sorted(kinds.values(), key=lambda kind: not suspect.isdisjoint(kind[0]))


def _members(kinds: Sequence[Kind]) -> list[int]:
    return [g for kind in kinds for unit in kind for g in unit]


class _Trial:
    """What to remove of each group, if it is chosen."""

    def __init__(self, groups: Groups, twin: Twin, sample: Sequence[Keep], known: dict[bytes, bool] | None = None) -> None:
        """known: what was tried in this twin before, by the cut."""
        self.groups, self.twin, self.sample = groups, twin, list(sample)
        self.known = {} if known is None else known

    def works(self, chosen: Collection[int]) -> bool:
        """Whether the class equals the masked original when these groups lose their part."""
        members = set(chosen)
        if not members:
            return True
        keep = [k if g in members else np.ones_like(k) for g, k in enumerate(self.sample)]
        key = np.packbits(np.concatenate(keep)).tobytes()
        if key not in self.known:
            self.known[key] = self._equals(keep)
        return self.known[key]

    def _equals(self, keep: Sequence[Keep]) -> bool:
        try:
            compare_recut(self.twin, self.groups.manifest(keep), self.groups.consumers)
        except SurgeryError:
            return False
        return True

    def tie(self, together: Sequence[int]) -> None:
        """From now on these lose the same fraction."""
        lost = sum(int((~k).sum()) for k in self.sample) / max(sum(group.size for group in self.groups.groups), 1)
        tied = same_fraction(self.groups, together, lost, np.random.default_rng(0))
        self.sample = [tied.get(g, k) for g, k in enumerate(self.sample)]

    def tied(self, together: Sequence[int], besides: Sequence[int] = ()) -> bool:
        """Whether the class works when these lose the same fraction, besides others, which they do in every later trial then."""
        before = self.sample
        self.tie(together)
        works = self.works([*besides, *together])
        if not works:
            self.sample = before
        return works

    def mixed_with(self, more: "_Trial", members: Collection[int]) -> "_Trial":
        """A trial in which these lose what they do in `more`, and the others what they do here; or nothing, if it is as much."""
        mine, theirs, chosen = self.sample, more.sample, set(members)
        less = [np.ones_like(a) if a.sum() == b.sum() else a for a, b in zip(mine, theirs, strict=True)]
        return _Trial(self.groups, self.twin, [theirs[g] if g in chosen else k for g, k in enumerate(less)], self.known)


def _trials(groups: Groups, twin: Twin, seed: int, known: dict[bytes, bool] | None = None) -> tuple[_Trial, _Trial]:
    """A third is lost, and two thirds."""
    known = {} if known is None else known
    few, many = (_Trial(groups, twin, _sample(groups, part, seed), known) for part in (1 / 3, 2 / 3))
    return few, many


def _sample(groups: Groups, part: float, seed: int) -> list[Keep]:
    """Of each group a random part is lost, as many atoms of all groups of one size; of coupled groups the same fraction."""
    random = np.random.default_rng(seed)
    sample = [random.permutation(group.size) >= max(1, int(group.size * part)) for group in groups.groups]
    tied = {g: keep for together in groups.coupled for g, keep in same_fraction(groups, together, part, random).items()}
    return [tied.get(g, keep) for g, keep in enumerate(sample)]


def _factors(groups: Groups) -> list[int]:
    """Groups that share indices with others: heads and their width. Sizes of 1 that others leave hide an error of theirs."""
    distinct = {id(extent): extent for extent in groups.extents.values() if len(extent.owners) > 1}
    shared = (extent for extent in distinct.values() if sum(len(np.unique(p)) for _, _, p in extent.owners) > extent.size)
    return sorted({group for extent in shared for group, _, _ in extent.owners})


def _guilty(kinds: Sequence[Kind], trial: _Trial) -> list[int]:
    """The groups of those units, groups or coupled ones, that fail by themselves. Of many of a kind the ends speak for all."""
    if not kinds or trial.works(_members(kinds)):
        return []
    if len(kinds) > 1:
        half = len(kinds) // 2
        return _guilty(kinds[:half], trial) + _guilty(kinds[half:], trial)
    (kind,) = kinds
    if len(kind) == 1 or not (trial.works(kind[0]) or trial.works(kind[-1])):
        return _members(kinds)
    half = len(kind) // 2
    return _guilty([kind[:half]], trial) + _guilty([kind[half:]], trial)


def _greedy(groups: list[int], trial: _Trial, coupled: Sequence[tuple[int, ...]] = ()) -> list[int]:
    """Of groups that work alone, or coupled, those that fail together with the ones before them."""
    if trial.works(groups):
        return []
    bound = {g for together in coupled for g in together}
    taken: list[int] = []
    for unit in (*((g,) for g in groups if g not in bound), *coupled):
        if trial.works([*taken, *unit]):
            taken.extend(unit)
    return [group for group in groups if group not in taken]
