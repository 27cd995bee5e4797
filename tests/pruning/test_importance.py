"""Importances on bare tensors: values by hand, aggregation over a group, normalization."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paredown.core.errors import RecipeError
from paredown.graph.groups import Group, Slice
from paredown.pruning.importance.activation import activation
from paredown.pruning.importance.aggregate import per_atom, per_index, readers, relative, shared
from paredown.pruning.importance.apoz import apoz
from paredown.pruning.importance.bn_scale import bn_scale
from paredown.pruning.importance.fisher import fisher
from paredown.pruning.importance.fpgm import fpgm
from paredown.pruning.importance.gradient import gradient
from paredown.pruning.importance.group_norm import group_norm, relative_to_best
from paredown.pruning.importance.l1 import l1
from paredown.pruning.importance.lamp import lamp
from paredown.pruning.importance.magnitude import magnitude
from paredown.pruning.importance.obd import obd
from paredown.pruning.importance.obs import obs
from paredown.pruning.importance.random import random
from paredown.pruning.importance.taylor import gate_gradient, taylor
from paredown.pruning.importance.taylor_second import perturbation, taylor_second


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


def rows(size: int) -> Group:
    """A group of `size` channels in the rows of one matrix."""
    own = np.arange(size)
    return Group("a", tuple(range(size)), (Slice("a.weight", 0, own, own, False),))


WEIGHTS = {
    "a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "a.bias": torch.tensor([9.0, 9.0]),
    "b.weight": torch.tensor([[1.0, 1.0, 2.0, 2.0], [0.0, 1.0, 0.0, 1.0]]),
}
MATRICES = [1.0 + 4 + 1 + 1 + 0 + 1, 9.0 + 16 + 4 + 4 + 0 + 1]  # squared norms of the two channels, without the bias


def of_mean_one(values: list[float]) -> list[float]:
    return [v / (sum(values) / len(values)) for v in values]


def test_values_are_summed_over_every_other_dimension() -> None:
    assert per_index(torch.arange(24.0).view(2, 3, 4), 1).tolist() == [60.0, 92.0, 124.0]
    assert per_index(torch.tensor([1.0, 2.0]), 0).tolist() == [1.0, 2.0]


def test_an_atom_gets_the_values_of_all_its_indices() -> None:
    values = {"a.weight": torch.tensor([1.0, 2.0]), "a.bias": torch.zeros(2), "b.weight": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    assert per_atom(group(), group().slices, lambda s: values[s.tensor]).tolist() == [4.0, 9.0]


def test_an_index_with_several_owners_counts_for_each() -> None:
    """Index 0 lives while atoms 0 and 1 do."""
    shared_index = Slice("w", 0, np.array([0, 1, 1]), np.array([0, 0, 1]), True)
    assert per_atom(Group("w", (0, 1), (shared_index,)), (shared_index,), lambda _: torch.tensor([5.0, 2.0])).tolist() == [
        5.0,
        7.0,
    ]


def test_scales_relative_and_shared() -> None:
    assert relative(torch.tensor([1.0, 3.0])).tolist() == [0.5, 1.5]
    found = shared([torch.tensor([1.0, 1.0]), torch.tensor([2.0, 4.0])])
    assert [s.tolist() for s in found] == [[0.5, 0.5], [1.0, 2.0]]
    assert relative(torch.zeros(3)).tolist() == [0.0] * 3


def test_a_group_that_no_weight_reads_is_masked_where_it_is_made() -> None:
    own = np.arange(2)
    slices = tuple(Slice(name, 0, own, own, False) for name in ("q.weight", "q.bias", "k.weight"))
    assert [s.tensor for s in readers(Group("q", (0, 1), slices))] == ["q.weight", "q.bias"]
    both = tuple(dataclasses.replace(s, consumer=True) for s in slices)  # as the graph marks what masks a product
    assert [s.tensor for s in readers(Group("q", (0, 1), both))] == ["q.weight", "q.bias"]
    assert [s.tensor for s in readers(group())] == ["b.weight"]


def test_gate_gradient_is_the_change_of_the_objective_that_masking_the_consumers_makes() -> None:
    ones = {name: torch.ones_like(w) for name, w in WEIGHTS.items()}
    assert gate_gradient(group(), WEIGHTS, ones).tolist() == [3.0, 5.0]
    assert gate_gradient(group(), WEIGHTS, {"b.weight": -ones["b.weight"]}).tolist() == [-3.0, -5.0]
    assert gate_gradient(group(), WEIGHTS, {}).tolist() == [0.0, 0.0]


def test_taylor_and_fisher_are_mean_squares_so_that_signs_do_not_cancel() -> None:
    gates = torch.tensor([[1.0, 2.0], [-1.0, 4.0]])
    assert taylor(gates).tolist() == [1.0, 10.0]
    assert fisher(gates).tolist() == [0.5, 5.0]


def test_gradient_sums_absolute_values_over_the_consumers() -> None:
    absolute = {"b.weight": torch.tensor([[1.0, 1.0, 2.0, 0.0], [0.0, 1.0, 0.0, 1.0]]), "a.weight": torch.full((2, 2), 9.0)}
    assert gradient(group(), absolute).tolist() == [3.0, 3.0]


def test_obd_is_half_the_curvature_times_the_squared_weight() -> None:
    squares = {"b.weight": torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 4.0]])}
    assert obd(group(), WEIGHTS, squares).tolist() == [1.0, 4.0]  # 1/2 (2 * 1), 1/2 (1 * 4 + 4 * 1)


def test_taylor_second_adds_the_curvature_to_the_slope() -> None:
    gates, second = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[2.0, 6.0], [2.0, 2.0]])
    assert taylor_second(gates, second).tolist() == [2.0, 5.0]  # of (1 - 1)^2 and (1 - 3)^2, of 3^2 and 1^2


def test_perturbation_moves_each_weight_by_the_signs_of_the_atoms_that_own_it() -> None:
    moved = perturbation([group(), group()], [torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])], WEIGHTS)
    assert moved["b.weight"].tolist() == [[2.0, 2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    assert set(moved) == {"b.weight"}


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 5))
def test_obs_is_the_inverse_of_the_damped_fisher_matrix(seed: int, size: int, pieces: int) -> None:
    gates = torch.randn(pieces, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    damping = 0.01 * float(gates.square().mean())
    inverse = torch.linalg.inv(damping * torch.eye(size, dtype=torch.float64) + gates.T @ gates / pieces)
    assert torch.allclose(obs(gates), 1 / (2 * inverse.diagonal()), rtol=1e-6)


def test_obs_scores_what_others_can_replace_below_what_stands_alone() -> None:
    """Atoms 0 and 1 do the same; 2 does as much by itself."""
    a, b = torch.randn(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = obs(torch.stack([a, a, b], 1))
    assert scores[0] == pytest.approx(float(scores[1])) and float(scores[0]) < 0.1 * float(scores[2])


def test_magnitude_and_l1_take_producers_and_consumers() -> None:
    assert magnitude(group(), WEIGHTS).tolist() == pytest.approx([math.sqrt(m) for m in MATRICES])
    assert l1(group(), WEIGHTS).tolist() == pytest.approx([3 + 3, 7 + 5])


def test_group_norm_takes_vectors_too_and_divides_by_the_better_half() -> None:
    first, second = (m + 81 for m in MATRICES)
    assert group_norm(group(), WEIGHTS).tolist() == [first, second]
    assert relative_to_best(group_norm(group(), WEIGHTS)).tolist() == pytest.approx([first / second, 1.0])


def test_lamp_is_the_share_of_what_is_left() -> None:
    weights = {"a.weight": torch.tensor([[2.0], [1.0], [3.0]])}
    assert lamp(rows(3), weights).tolist() == pytest.approx([4 / 13, 1 / 14, 1.0])


def test_fpgm_is_least_at_the_geometric_median_not_at_the_smallest() -> None:
    weights = {"a.weight": torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])}
    assert fpgm(rows(3), weights).tolist() == pytest.approx([1 + 3, 1 + 2, 3 + 2])


def test_fpgm_joins_the_slices_of_a_group_into_one_vector() -> None:
    vectors = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0, 1.0], [3.0, 4.0, 2.0, 0.0, 2.0, 1.0]])
    apart = float((vectors[0] - vectors[1]).norm())
    assert fpgm(group(), WEIGHTS).tolist() == pytest.approx([apart, apart])
    three = Group(
        "a",
        (0, 1, 2),
        (Slice("a.weight", 0, np.arange(3), np.arange(3), False), Slice("b.weight", 1, np.arange(3), np.arange(3), True)),
    )
    weights = {"a.weight": torch.tensor([[0.0], [3.0], [0.0]]), "b.weight": torch.tensor([[0.0, 0.0, 4.0]])}
    assert fpgm(three, weights).tolist() == pytest.approx([3 + 4, 3 + 5, 4 + 5])


def test_bn_scale_is_the_mean_scale_of_the_groups_batch_norms() -> None:
    own = np.arange(2)
    norms = Group("n", (0, 1), tuple(Slice(name, 0, own, own, False) for name in ("n.weight", "m.weight")))
    weights = {"n.weight": torch.tensor([-1.0, 3.0]), "m.weight": torch.tensor([1.0, 1.0]), **WEIGHTS}
    found = bn_scale([norms], weights, {"n.weight", "m.weight"})[0].tolist()
    assert found == pytest.approx(of_mean_one([1.0, 2.0]))
    both = bn_scale([norms, group()], weights, {"n.weight", "m.weight"})
    assert float(both[1].mean()) == pytest.approx(float(both[0].mean()))  # a group without a batch norm is as important
    with pytest.raises(RecipeError, match=r"bn_scale needs batch norms.*taylor"):
        bn_scale([group()], weights, set())


def test_activation_statistics() -> None:
    a = torch.tensor([[-2.0, 0.0], [4.0, 0.5]])
    assert activation(a).tolist() == [[2.0, 0.0], [4.0, 0.5]]
    assert apoz(a).tolist() == [[1.0, 0.0], [1.0, 1.0]]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_relative_criteria_do_not_see_the_scale_of_a_layer(seed: int, scale: float) -> None:
    weights = {"a.weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}
    scaled: dict[str, Tensor] = {"a.weight": scale * weights["a.weight"]}
    for criterion, scale_of in (
        (magnitude, relative),
        (l1, relative),
        (group_norm, relative_to_best),
        (fpgm, relative),
        (lamp, relative),
    ):
        found, expected = (scale_of(criterion(rows(5), of)) for of in (scaled, weights))
        assert torch.allclose(found, expected, rtol=1e-5)


def test_random_is_the_same_for_the_same_seed() -> None:
    draw = [random(group(), torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]
