"""The choice under a goal: thresholds of groups that are coupled, and what an atom saves."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from paredown.core.steps import Prune, Widths
from paredown.graph.groups import Groups, dependency_groups
from paredown.graph.units import Units
from paredown.pruning.goals import Job, choose, macs_per_atom
from paredown.task.task import Task


@pytest.fixture
def groups(pattern_task: Task) -> Groups:
    return dependency_groups(pattern_task.model, pattern_task.inputs)


@pytest.mark.parametrize("coupled", [(), ((0, 1),)])
def test_a_threshold_is_in_the_unit_of_one_atom_whether_or_not_groups_are_coupled(
    pattern_task: Task, groups: Groups, coupled: tuple[tuple[int, ...], ...]
) -> None:
    """Half of the atoms of every group score 0.6, the others 1.4; two coupled atoms together score more than 1."""
    tied = dataclasses.replace(groups, coupled=coupled)
    units = Units(tied, [np.where(np.arange(g.size) % 2 == 0, 0.6, 1.4) for g in tied.groups])
    job = Job(pattern_task.model, pattern_task, Prune(threshold=1.0, widths=Widths(round_to=1)), tied, units)
    kept = units.spread(choose(job))
    assert [int(keep.sum()) for keep in kept] == [g.size // 2 for g in tied.groups]


def test_what_an_atom_saves_is_the_mean_over_half_of_its_group(groups: Groups) -> None:
    sizes = [group.size for group in groups.groups]
    keep = groups.all_kept()
    keep[1] = np.arange(sizes[1]) < sizes[1] - sizes[1] // 2
    saved = groups.macs(groups.all_kept()) - groups.macs(keep)
    found = macs_per_atom(sizes, groups.macs)
    assert found[1] == pytest.approx(saved / (sizes[1] // 2))
    assert macs_per_atom([3, 1], lambda _: 5.0) == [1.0, 1.0]


def test_linear_groups_save_what_stands_beside_them() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    found = dependency_groups(model, torch.randn(2, 6))
    assert macs_per_atom([8], found.macs) == [6 + 5]
