"""Blocks of a reshape."""

import pytest

from paredown.graph.reshape import blocks


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 12, 4, 4), (2, 3, 64), [([0], [0]), ([1, 2, 3], [1, 2])]),
        ((2, 8, 1, 1), (2, 8), [([0], [0]), ([1], [1])]),
        ((2, 24), (2, 4, 6), [([0], [0]), ([1], [1, 2])]),
        ((2, 4, 6), (2, 1, 24), [([0], [0]), ([1, 2], [2])]),
        ((2, 3, 5), (2, 3, 5), [([0], [0]), ([1], [1]), ([2], [2])]),
        ((2, 6, 4), (2, 4, 6), [([0], [0]), ([1, 2], [1, 2])]),
        ((1, 1), (1,), []),
    ],
)
def test_blocks_are_the_finest_with_equal_products(before: tuple[int, ...], after: tuple[int, ...], expected: object) -> None:
    assert blocks(before, after) == expected
