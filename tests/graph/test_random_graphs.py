"""Any cut of any random graph equals its mask, and few graphs are all barriers."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as random_seed
from hypothesis import strategies as st
from torch import nn

from paredown.core.errors import SurgeryError
from paredown.graph.couple import same_fraction
from paredown.graph.equality import check_cut
from paredown.graph.groups import Groups, Keep, dependency_groups
from paredown.graph.probe import culprits
from paredown.graph.surgery import cut
from tests.graph.random_graphs import RandomGraph, descriptions, image

PARTS, GRAPHS = 6, 50  # 300 in all
SETTINGS = settings(  # none is shrunk, which would take minutes
    deadline=None, max_examples=GRAPHS, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
)


def random_choice(groups: Groups, seed: int) -> list[Keep]:
    """Of every group a random part, maybe all; of those that are coupled the same fraction."""
    random = np.random.default_rng(seed)
    keep = [random.permutation(group.size) < random.integers(1, group.size + 1) for group in groups.groups]
    for together in groups.coupled:
        for g, kept in same_fraction(groups, together, float(random.random()), random).items():
            keep[g] = kept
    return keep


def checked_error(model: nn.Module, groups: Groups, seed: int) -> float:
    """The error of a random cut; groups that the class can't lose in just this way are left whole, as `prune` does."""
    while True:
        keep = random_choice(groups, seed)
        try:
            manifest = groups.manifest(keep)
            return check_cut(model, cut(model, manifest), manifest, groups.consumers, image(), seed=seed + 1)
        except SurgeryError:
            bad = culprits(model, groups, keep, image(), seed + 1)
            assert bad, "a cut fails, and no group of it is to blame"
            groups = groups.without(bad)


@pytest.mark.parametrize("part", range(PARTS))
def test_cut_random_graphs_equal_their_masks(part: int) -> None:
    cuts: list[bool] = []

    @random_seed(part)  # the same graphs in every run
    @SETTINGS
    @given(descriptions(), st.integers(0, 10_000))
    def each(description: tuple[int, tuple[str, ...]], seed: int) -> None:
        torch.manual_seed(seed)
        model = RandomGraph(*description).eval()
        groups = dependency_groups(model, image())
        cuts.append(bool(groups.groups))
        if groups.groups:
            assert checked_error(model, groups, seed) <= 1e-9

    each()
    assert len(cuts) >= GRAPHS and sum(cuts) >= 0.9 * len(cuts), "too many graphs of which nothing can be removed"
