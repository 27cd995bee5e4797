"""The preferred multiple, from tables that kernels of known block sizes would give."""

import math

import pytest

from paredown.core.errors import RecipeError
from paredown.core.steps import Prune, Widths
from paredown.pruning.widths import preferred_multiple, resolved, widths_to_measure


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


def test_only_a_multiple_left_open_is_filled_in() -> None:
    open_, given = Prune(ratio=0.5, widths=Widths(round_to=0, floor=0.3)), Prune(ratio=0.5, widths=Widths(round_to=4))
    assert resolved(open_, blocks(16)).widths == Widths(round_to=16, floor=0.3)
    assert resolved(given, blocks(16)) is given
