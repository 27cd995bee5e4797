"""A palette: the nearest codes, a smaller error than a linear grid of as many values, an honest size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.core.errors import RecipeError
from paredown.quantization.grid import linear_grid
from paredown.quantization.palette import palettize
from paredown.quantization.weights import fitted_scales, rounded
from paredown.task.task import Task


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60), st.integers(1, 8))
def test_every_weight_gets_its_nearest_code(values: list[float], bits: int) -> None:
    weight = torch.tensor(values)
    palette = palettize(weight, bits)
    assert len(palette.codebook) <= 2**bits
    distance = (weight.unsqueeze(1) - palette.codebook).abs()
    assert torch.allclose((weight - palette.weight()).abs(), distance.amin(1), rtol=1e-4, atol=1e-4)


def test_few_values_come_back_exactly() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
    assert torch.equal(palettize(weight, 2).weight(), weight)


def test_importance_draws_the_codes_to_where_it_is_large() -> None:
    weight = torch.cat([torch.linspace(0, 1, 500), torch.linspace(9, 10, 500)])
    importance = torch.cat([torch.ones(500), torch.full((500,), 1e-6)])
    near, plain = palettize(weight, 2, importance).weight(), palettize(weight, 2).weight()
    assert (near - weight)[:500].norm() <= (plain - weight)[:500].norm()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_on_real_weights_it_is_nearer_than_a_linear_grid_per_tensor(published: Task, bits: int) -> None:
    weight = published.model.get_parameter("layer2.1.conv1.weight").detach()
    palette, grid = palettize(weight, bits), linear_grid(bits)
    row = weight.reshape(1, -1)
    linear = rounded(row, *fitted_scales(row, grid), grid).view_as(weight)
    assert (palette.weight() - weight).norm() < 0.95 * (linear - weight).norm()
    assert palette.size_bytes == weight.numel() * bits // 8 + 4 * 2**bits


def test_other_bits_are_refused() -> None:
    with pytest.raises(RecipeError, match="a palette has 1 to 8 bits, got 9; 4 is a codebook of 16 values"):
        palettize(nn.Linear(2, 2).weight, 9)
