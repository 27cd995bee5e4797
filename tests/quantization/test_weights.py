"""Scales of weights: fitted ones are nearer than the extremes; what is stored is what is computed with."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.quantization.grid import linear_grid
from paredown.quantization.weights import dequantized, extreme_scales, fitted_scales, integers, rounded


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_fitted_scales_lower_the_squared_error_of_every_row(bits: int, block: int, symmetric: bool) -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    grid = linear_grid(bits, symmetric=symmetric, signed=symmetric)

    def error(scales: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return (rounded(weight, *scales, grid, block) - weight).square().flatten(1).sum(1)

    fitted, extreme = error(fitted_scales(weight, grid, block)), error(extreme_scales(weight, grid, block))
    assert (fitted <= extreme + 1e-6).all()
    assert fitted.sum() < 0.97 * extreme.sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.sampled_from([0, 8, 32]), st.integers(0, 2**31))
def test_rounding_what_is_rounded_changes_nothing(bits: int, block: int, seed: int) -> None:
    weight = torch.randn(3, 45, generator=torch.Generator().manual_seed(seed))
    grid = linear_grid(bits)
    scales = fitted_scales(weight, grid, block)
    once = rounded(weight, *scales, grid, block)
    assert torch.equal(rounded(once, *scales, grid, block), once)
    stored = integers(weight, *scales, grid, block)
    assert grid.low <= int(stored.min()) and int(stored.max()) <= grid.high
    assert torch.equal(dequantized(stored, *scales, block), once)


def test_a_row_of_zeros_stays_zero() -> None:
    weight = torch.cat([torch.zeros(1, 40), torch.ones(1, 40)])
    scale, zero_point = fitted_scales(weight, linear_grid(4), 32)
    assert scale.shape == (2, 2) and scale[0].tolist() == [1, 1]
    assert torch.equal(rounded(weight, scale, zero_point, linear_grid(4), 32)[0], torch.zeros(40))
