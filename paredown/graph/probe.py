"""Which groups the model's own class can lose: cut some of each, run the class, compare it with the masked original.

Widths may be literals in forward, or attributes that we don't know. We never guess those: what can't be cut is a barrier.
Groups that can only lose the same fraction (the halves of `chunk(2)` in ShuffleNet) are found by trying that: `couple.py`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from paredown.core.errors import SurgeryError
from paredown.graph.collect import Groups, Keep
from paredown.graph.couple import find_coupled, same_fraction
from paredown.graph.equality import Twin, compare, random_twin
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut, recut_
from paredown.task.batches import Inputs


@dataclass(frozen=True)
class Findings:
    """uncuttable: numbers of groups that must stay whole. coupled: sets of groups that must lose the same fraction."""

    uncuttable: tuple[int, ...] = ()
    coupled: tuple[tuple[int, ...], ...] = ()


def probe(model: nn.Module, groups: Groups, inputs: Inputs, seed: int = 0) -> Findings:
    """Tries all groups together, then halves of them such that any two are told apart, then factors alone; bisects what fails.

    What `groups.coupled` holds already is tried together throughout.
    """
    twin = random_twin(model, inputs, seed)
    scratch = cut(twin.model, Manifest())
    few, many = (_Trial(groups, twin, scratch, _sample(groups, part, seed)) for part in (1 / 3, 2 / 3))
    numbers, bound = list(range(len(groups.groups))), {g for together in groups.coupled for g in together}
    every = [*groups.coupled, *((g,) for g in numbers if g not in bound)]
    bits = range((len(every) - 1).bit_length())
    halves = [[unit for u, unit in enumerate(every) if (u >> bit & 1) == side] for bit in bits for side in (0, 1)]
    alone: list[list[tuple[int, ...]]] = [[(g,)] for g in _factors(groups) if g not in bound]
    rounds = [(few, every), (many, every), *((few, chosen) for chosen in (*halves, *alone))]
    guilty: set[int] = set()
    for trial, chosen in rounds:
        guilty.update(_guilty([unit for unit in chosen if guilty.isdisjoint(unit)], trial))
    coupled = [together for together in groups.coupled if guilty.isdisjoint(together)]
    coupled += find_coupled(sorted(guilty), groups, lambda together: all(trial.tied(together) for trial in (few, many)))
    guilty -= {g for together in coupled for g in together}
    for trial in (few, many) if guilty or coupled else ():
        guilty.update(_greedy([g for g in numbers if g not in guilty], trial, coupled))
    return Findings(tuple(sorted(guilty)), tuple(together for together in coupled if not guilty.intersection(together)))


def culprits(model: nn.Module, groups: Groups, keep: Sequence[Keep], inputs: Inputs, seed: int = 0) -> list[int]:
    """Numbers of the groups without whose part the cut `keep` works: what is right for some atoms may be wrong for others."""
    twin = random_twin(model, inputs, seed)
    trial = _Trial(groups, twin, cut(twin.model, Manifest()), keep)
    numbers = [g for g, k in enumerate(keep) if not k.all()]
    bound = {g for together in groups.coupled for g in together}
    alone = _guilty([*((g,) for g in numbers if g not in bound), *groups.coupled], trial)
    return sorted(alone + _greedy([g for g in numbers if g not in alone], trial, groups.coupled))


class _Trial:
    """What to remove of each group, if it is chosen.

    scratch: a copy of the twin, cut again and again, since copying a module takes longer than running it.
    """

    def __init__(self, groups: Groups, twin: Twin, scratch: nn.Module, sample: Sequence[Keep]) -> None:
        self.groups, self.twin, self.scratch, self.sample = groups, twin, scratch, list(sample)

    def works(self, chosen: Collection[int]) -> bool:
        """Whether the class equals the masked original when these groups lose their part."""
        keep = [k if g in chosen else np.ones_like(k) for g, k in enumerate(self.sample)]
        try:
            manifest = self.groups.manifest(keep)
            recut_(self.scratch, self.twin.model, manifest)
            compare(self.scratch, self.twin, manifest, self.groups.consumers)
        except SurgeryError:
            return False
        return True

    def tied(self, together: Sequence[int]) -> bool:
        """Whether the class works when these lose the same fraction, which they do in every later trial then."""
        before, whole = self.sample, sum(group.size for group in self.groups.groups)
        lost = sum(int((~k).sum()) for k in before) / max(whole, 1)
        tied = same_fraction(self.groups, together, lost, np.random.default_rng(0))
        self.sample = [tied.get(g, k) for g, k in enumerate(before)]
        works = self.works(together)
        if not works:
            self.sample = before
        return works


def _sample(groups: Groups, part: float, seed: int) -> list[Keep]:
    """Of each group a random part is lost, as many atoms of all groups of one size."""
    random = np.random.default_rng(seed)
    return [random.permutation(group.size) >= max(1, int(group.size * part)) for group in groups.groups]


def _factors(groups: Groups) -> list[int]:
    """Groups that share indices with others: heads and their width. Sizes of 1 that others leave hide an error of theirs."""
    shared = (extent for extent in groups.extents.values() if sum(len(np.unique(p)) for _, _, p in extent.owners) > extent.size)
    return sorted({group for extent in shared for group, _, _ in extent.owners})


def _guilty(units: Sequence[tuple[int, ...]], trial: _Trial) -> list[int]:
    """The groups of those units, groups or coupled ones, that fail by themselves."""
    chosen = [g for unit in units for g in unit]
    if not units or trial.works(chosen):
        return []
    if len(units) == 1:
        return chosen
    half = len(units) // 2
    return _guilty(units[:half], trial) + _guilty(units[half:], trial)


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
