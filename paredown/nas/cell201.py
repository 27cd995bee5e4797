"""The cells of NAS-Bench-201 / NATS-Bench's topology space (arXiv:2001.00326, 2009.00437): 6 edges x 5 operators.

The official string lists the edges into nodes 1, 2, 3: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, ~j being the node an edge
comes from.
"""

import re
from collections.abc import Mapping

from paredown.core.errors import SearchSpaceError
from paredown.nas.dimensions import Choice, Value
from paredown.nas.space import Architecture, Space
from paredown.nas.symmetry import EDGES, OPERATORS, CellSymmetry

NAMES = tuple(f"op_{start}{end}" for start, end in EDGES)
_STRING = re.compile(r"\|(\w+)~0\|\+\|(\w+)~0\|(\w+)~1\|\+\|(\w+)~0\|(\w+)~1\|(\w+)~2\|")
_STEM_AND_REST = 73_306  # parameters of the network without its cells' operators, 10 classes
_OPERATOR = (0, 0, 28_000, 243_040, 0)  # of each of OPERATORS, over the network's 15 cells


def space() -> Space:
    """All 15,625 cells, known to be 6,466 different ones."""
    return Space(tuple(Choice(name, OPERATORS) for name in NAMES), symmetries=(CellSymmetry(NAMES),))


def to_string(cell: Mapping[str, Value]) -> str:
    """A cell's values (six operators by name) as the official string."""
    ops = [cell[name] for name in NAMES]
    return "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops)


def from_string(text: str) -> dict[str, Value]:
    """The inverse of `to_string`. Raises SearchSpaceError where the text isn't an official string."""
    match = _STRING.fullmatch(text)
    if match is None or any(op not in OPERATORS for op in match.groups()):
        raise SearchSpaceError(
            "a cell is written |op~0|+|op~0|op~1|+|op~0|op~1|op~2|", got=text, remedy=f"op is one of {', '.join(OPERATORS)}"
        )
    return dict(zip(NAMES, match.groups(), strict=True))


def parameters(architecture: Architecture) -> float:
    """Of the network of C = 16, N = 5 and 10 classes that is built of a cell. Of a product, the first six dimensions count."""
    return float(_STEM_AND_REST + sum(_OPERATOR[edge] for edge in architecture[: len(EDGES)]))


def architecture(text: str) -> Architecture:
    """Of an official string, in `space()`."""
    return tuple(OPERATORS.index(str(op)) for op in from_string(text).values())
