"""The preferred multiple, from tables that kernels of known block sizes would give."""

import math

import pytest

from paredown.core.errors import RecipeError
from paredown.pruning.widths import preferred_multiple, widths_to_measure


def blocks(size: int, constant: float = 0.0) -> dict[int, float]:
    return {w: constant + math.ceil(w / size) * size / 64 for w in widths_to_measure()}


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_the_block_size_of_the_kernel_is_found(size: int, constant: float) -> None:
    assert preferred_multiple(blocks(size, constant)) == size


def test_a_function_serves_as_well_as_a_table() -> None:
    assert preferred_multiple(lambda w: math.ceil(w / 8)) == 8


def test_one_spoilt_measurement_does_not_decide() -> None:
    table = blocks(8)
    table[96 - 8] *= 3
    assert preferred_multiple(table) == 8


def test_a_time_that_never_falls_leaves_the_largest_multiple() -> None:
    assert preferred_multiple(lambda _: 1.0) == 32


def test_a_missing_width_is_named() -> None:
    table = blocks(8)
    del table[64]
    with pytest.raises(RecipeError, match="no width 64; measure every width"):
        preferred_multiple(table)
