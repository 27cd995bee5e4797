"""Any cut of any random graph equals its mask, and few graphs are all barriers."""

import functools
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.core.errors import SurgeryError
from paredown.graph.couple import same_fraction
from paredown.graph.equality import check_cut
from paredown.graph.groups import Groups, Keep, dependency_groups
from paredown.graph.probe import culprits
from paredown.graph.surgery import cut
from tests.graph.random_graphs import KINDS, Description, RandomGraph, descriptions, drawn_from, image

GRAPHS, SPARE = 16, 2  # of each kind of step: to compare, and in case nothing can be removed of one


@functools.cache
def drawn() -> dict[str, list[Description]]:
    """By kind of step; the same in every run, and none twice."""
    seen = set[str]()
    return {kind: descriptions(kind, GRAPHS + SPARE, seen) for kind in KINDS}


def random_choice(groups: Groups, seed: int) -> list[Keep]:
    """Of every group a random part, maybe all, but not of all of them; of those that are coupled the same fraction."""
    dice = np.random.default_rng(seed)
    for _ in range(100):  # of groups of one index nothing can be lost
        keep = [dice.permutation(group.size) < dice.integers(1, group.size + 1) for group in groups.groups]
        for together in groups.coupled:
            for g, kept in same_fraction(groups, together, float(dice.random()), dice).items():
                keep[g] = kept
        if not all(kept.all() for kept in keep):
            break
    return keep


def checked_error(model: nn.Module, groups: Groups, seed: int) -> float | None:
    """The error of a random cut, None where nothing can be cut.

    Groups that the class can't lose in just this way are left whole, as `prune` does.
    """
    while True:
        keep = random_choice(groups, seed)
        try:
            manifest = groups.manifest(keep)
            if not manifest.kept:
                return None
            return check_cut(model, cut(model, manifest), manifest, groups.consumers, image(), seed=seed + 1)
        except SurgeryError:
            bad = culprits(model, groups, keep, image(), seed + 1)
            assert bad, "a cut fails, and no group of it is to blame"
            groups = groups.without(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_of_random_graphs_equal_their_masks(kind: str) -> None:
    """Each has a step of this kind, and is none of those that have another kind's turn."""
    compared = set[str]()
    for seed, description in enumerate(drawn()[kind]):
        torch.manual_seed(seed)
        model = RandomGraph(description).eval()
        error = checked_error(model, dependency_groups(model, image()), seed)
        if error is not None:
            assert error <= 1e-9
            compared.add(str(description))
        if len(compared) == GRAPHS:
            return
    pytest.fail(f"{len(compared)} of {GRAPHS + SPARE} graphs can be cut")


@settings(deadline=None, max_examples=25, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
@given(st.randoms(use_true_random=False), st.sampled_from(KINDS), st.integers(0, 10_000))
def test_cuts_of_other_graphs_in_every_run_equal_their_masks(draw: random.Random, kind: str, seed: int) -> None:
    description = drawn_from(draw, kind)
    assume(description is not None)
    assert description is not None  # as assumed
    torch.manual_seed(seed)
    model = RandomGraph(description).eval()
    error = checked_error(model, dependency_groups(model, image()), seed)
    assert error is None or error <= 1e-9


def test_the_random_graphs_are_more_than_300_of_every_kind_of_step_and_differ() -> None:
    every = [description for of_a_kind in drawn().values() for description in of_a_kind]
    assert len(KINDS) * GRAPHS >= 300 and len({str(description) for description in every}) == len(every)
    assert all(any(step == kind for step, _ in d.steps) for kind, of_a_kind in drawn().items() for d in of_a_kind)
    assert {"residual", "cat", "split", "pad", "grouped", "depthwise", "shuffle", "heads", "sdpa"} <= {*KINDS}
    branching = [d for d in every if any(sources != (i,) for i, (_, sources) in enumerate(d.steps))]
    assert len(branching) >= 100  # the others are chains
