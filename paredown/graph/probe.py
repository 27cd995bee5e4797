"""Which groups the model's own class can lose: cut some of each, run the class, compare it with the masked original.

Widths may be literals in forward, or attributes that we don't know. We never guess those: what can't be cut is a barrier.
Groups that can only lose equally many atoms (the halves of `chunk(2)` in ShuffleNet) are found by trying that.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from paredown.core.errors import SurgeryError
from paredown.graph.collect import Groups, Keep
from paredown.graph.equality import compare, random_twin
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut, recut_
from paredown.task.batches import Inputs


@dataclass(frozen=True)
class Findings:
    """uncuttable: numbers of groups that must stay whole. coupled: sets of groups that must lose equally many atoms."""

    uncuttable: tuple[int, ...] = ()
    coupled: tuple[tuple[int, ...], ...] = ()


def probe(model: nn.Module, groups: Groups, inputs: Inputs, seed: int = 0) -> Findings:
    """Tries all groups together, then halves of them such that any two groups are told apart; bisects where that fails."""
    trial = _Trial(model, groups, inputs, seed)
    numbers = list(range(len(groups.groups)))
    bits = range((len(numbers) - 1).bit_length())
    rounds = [numbers, *([g for g in numbers if (g >> bit & 1) == side] for bit in bits for side in (0, 1))]
    guilty: set[int] = set()
    for chosen in rounds:
        guilty.update(_guilty([g for g in chosen if g not in guilty], trial))
    coupled = _coupled(sorted(guilty), groups, trial)
    guilty -= {g for together in coupled for g in together}
    rest = [g for g in numbers if g not in guilty]
    if (guilty or coupled) and not trial.works(rest):  # they fail only together
        guilty.update(_greedy(rest, trial))
    return Findings(tuple(sorted(guilty)), tuple(together for together in coupled if not guilty.intersection(together)))


class _Trial:
    """One sample of what to remove: of each group a random part, as many atoms from all groups of one size.

    scratch is cut again and again: copying a module takes longer than running it.
    """

    def __init__(self, model: nn.Module, groups: Groups, inputs: Inputs, seed: int) -> None:
        self.groups, self.twin = groups, random_twin(model, inputs, seed)
        self.scratch = cut(self.twin.model, Manifest())
        random = np.random.default_rng(seed)
        self.sample = [random.permutation(group.size) >= max(1, group.size // 3) for group in groups.groups]

    def works(self, chosen: Collection[int]) -> bool:
        """Whether the class equals the masked original when these groups lose their part."""
        keep: list[Keep] = [k if g in chosen else np.ones_like(k) for g, k in enumerate(self.sample)]
        manifest = self.groups.manifest(keep)
        recut_(self.scratch, self.twin.model, manifest)
        try:
            compare(self.scratch, self.twin, manifest, self.groups.consumers)
        except SurgeryError:
            return False
        return True


def _guilty(groups: list[int], trial: _Trial) -> list[int]:
    """Those that fail by themselves."""
    if not groups or trial.works(groups):
        return []
    if len(groups) == 1:
        return groups
    half = len(groups) // 2
    return _guilty(groups[:half], trial) + _guilty(groups[half:], trial)


def _coupled(guilty: Sequence[int], groups: Groups, trial: _Trial) -> list[tuple[int, ...]]:
    """Sets of groups of one size that fail alone and work together."""
    sizes = sorted({groups.groups[g].size for g in guilty})
    sets = [tuple(g for g in guilty if groups.groups[g].size == size) for size in sizes]
    return [together for together in sets if len(together) > 1 and trial.works(together)]


def _greedy(groups: list[int], trial: _Trial) -> list[int]:
    """One by one, those that fail together with the ones taken so far."""
    taken: list[int] = []
    for group in groups:
        if trial.works([*taken, group]):
            taken.append(group)
    return [group for group in groups if group not in taken]
