"""Which cells of NAS-Bench-201 are one architecture (arXiv:2001.00326, section 3.1: 6,466 classes of 15,625 cells).

A cell is a graph of 4 nodes; the edge from node j to node i carries one of five operators, and a node is the sum of its
edges. "none" gives zero, whatever it is applied to; a skip connection hands its input on; the order of a sum is free. This is the
paper's own form: zeros stay as terms, and a sum that is handed on stays one term in brackets, so it tells apart some cells
that compute the same function.
Edges are ordered 0>1, 0>2, 1>2, 0>3, 1>3, 2>3, as in the official string.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

OPERATORS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_ZERO = "#"


@dataclass(frozen=True)
class CellSymmetry:
    """The six named dimensions of a space are the edges of one cell, each with the options OPERATORS in that order."""

    dimensions: tuple[str, ...]
    kind: Literal["cell201"] = "cell201"


def expression(operators: Sequence[str]) -> str:
    """What the last node computes, as text: equal for cells of one class. operators: the six of EDGES."""
    nodes = ["0", "", "", ""]
    for node in (1, 2, 3):
        terms = [_term(nodes[start], op) for (start, end), op in zip(EDGES, operators, strict=True) if end == node]
        nodes[node] = "+".join(sorted(terms))
    return nodes[3]


def _term(source: str, operator: str) -> str:
    if operator == "none" or source == _ZERO:
        return _ZERO
    return source if operator == "skip_connect" else f"({source})@{operator}"


@functools.cache
def representatives() -> dict[tuple[int, ...], tuple[int, ...]]:
    """Each of the 15,625 cells, as indices into OPERATORS, to the first cell of its class in that order."""
    first: dict[str, tuple[int, ...]] = {}
    cells = itertools.product(range(len(OPERATORS)), repeat=len(EDGES))
    return {cell: first.setdefault(expression([OPERATORS[i] for i in cell]), cell) for cell in cells}
