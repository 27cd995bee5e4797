"""Importances: values by hand, aggregation over a group, normalization."""

import numpy as np
import pytest
import torch

from paredown.graph.groups import Group, Slice
from paredown.pruning.importance.aggregate import per_atom, per_index
from paredown.pruning.importance.magnitude import magnitude
from paredown.pruning.importance.random import random
from paredown.pruning.importance.taylor import taylor


def group() -> Group:
    """Two channels; the consumer reads each in two columns, as after a flatten."""
    own, twice = np.array([0, 1]), np.array([0, 0, 1, 1])
    return Group(
        "a",
        (10, 11),
        (
            Slice("a.weight", 0, own, own, False),
            Slice("a.bias", 0, own, own, False),
            Slice("b.weight", 1, twice, np.arange(4), True),
        ),
    )


WEIGHTS = {
    "a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "a.bias": torch.tensor([9.0, 9.0]),
    "b.weight": torch.tensor([[1.0, 1.0, 2.0, 2.0], [0.0, 1.0, 0.0, 1.0]]),
}


def test_values_are_summed_over_every_other_dimension() -> None:
    assert per_index(torch.arange(24.0).view(2, 3, 4), 1).tolist() == [60.0, 92.0, 124.0]
    assert per_index(torch.tensor([1.0, 2.0]), 0).tolist() == [1.0, 2.0]


def test_an_atom_gets_the_values_of_all_its_indices() -> None:
    values = {"a.weight": torch.tensor([1.0, 2.0]), "a.bias": torch.zeros(2), "b.weight": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    assert per_atom(group(), group().slices, lambda s: values[s.tensor]).tolist() == [4.0, 9.0]


def test_taylor_is_the_change_of_the_objective_that_masking_the_consumers_makes() -> None:
    gradient = {name: torch.ones_like(w) for name, w in WEIGHTS.items()}
    assert taylor(group(), WEIGHTS, gradient).tolist() == [3.0, 5.0]
    assert taylor(group(), WEIGHTS, {"b.weight": -gradient["b.weight"]}).tolist() == [3.0, 5.0]
    assert taylor(group(), WEIGHTS, {}).tolist() == [0.0, 0.0]


def test_magnitude_takes_producers_and_consumers_and_has_mean_one() -> None:
    scores = magnitude(group(), WEIGHTS)
    norms = torch.tensor([1.0 + 4 + 1 + 1 + 0 + 1, 9.0 + 16 + 4 + 4 + 0 + 1], dtype=torch.float64).sqrt()
    assert torch.allclose(scores, norms / norms.mean())
    assert float(scores.mean()) == pytest.approx(1.0)


def test_random_is_the_same_for_the_same_seed() -> None:
    draw = [random(group(), torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]
