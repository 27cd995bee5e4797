"""Which groups the model's own class can lose: cut some of each, run the class, compare it with the masked original.

Widths may be literals in forward, or numbers in attributes that we don't know. We never guess those: what can't be cut is a barrier.
"""

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from paredown.core.errors import SurgeryError
from paredown.graph.equality import check_cut
from paredown.graph.collect import Groups, Keep
from paredown.graph.surgery import cut
from paredown.task.batches import Inputs


def uncuttable(model: nn.Module, groups: Groups, inputs: Inputs, seed: int = 0) -> list[int]:
    """Numbers of the groups that the class can't lose an arbitrary part of, found by bisection."""
    sample = _sample(groups, seed)

    def works(chosen: Sequence[int]) -> bool:
        keep = [sample[g] if g in chosen else np.ones_like(sample[g]) for g in range(len(sample))]
        return _equal(model, groups, keep, inputs, seed)

    everything = list(range(len(groups.groups)))
    if works(everything):
        return []
    guilty = _guilty(everything, works)
    rest = [g for g in everything if g not in guilty]
    together = [] if works(rest) else _greedy(rest, works)
    return sorted(guilty + together)


def _sample(groups: Groups, seed: int) -> list[Keep]:
    """Of each group a random part, at least one atom and about a quarter, so that no two lose the same number by rule."""
    random = np.random.default_rng(seed)
    sample = []
    for group in groups.groups:
        keep = np.ones(group.size, dtype=np.bool_)
        keep[random.permutation(group.size)[: random.integers(1, max(2, group.size // 2))]] = False
        sample.append(keep)
    return sample


def _equal(model: nn.Module, groups: Groups, keep: Sequence[Keep], inputs: Inputs, seed: int) -> bool:
    manifest = groups.manifest(keep)
    try:
        check_cut(model, cut(model, manifest), manifest, groups.consumers, inputs, seed=seed)
    except SurgeryError:
        return False
    return True


def _guilty(groups: list[int], works: Callable[[Sequence[int]], bool]) -> list[int]:
    """Those that fail by themselves."""
    if not groups or works(groups):
        return []
    if len(groups) == 1:
        return groups
    half = len(groups) // 2
    return _guilty(groups[:half], works) + _guilty(groups[half:], works)


def _greedy(groups: list[int], works: Callable[[Sequence[int]], bool]) -> list[int]:
    """One by one, those that fail together with the ones taken so far."""
    taken: list[int] = []
    for group in groups:
        if works([*taken, group]):
            taken.append(group)
    return [group for group in groups if group not in taken]
