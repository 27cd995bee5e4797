"""Several spaces as one: architecture x bits x sparsity, searched jointly.

    joint = product(cell=cell201.space(), bits=per_layer(("stem", "body"), (8, 4)), sparsity=per_layer(("body",), (0.0, 0.5)))

Names get their part in front ("cell.op_01"); constraints and symmetries of each part hold on.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from paredown.core.errors import SearchSpaceError
from paredown.nas.dimensions import ActiveIf, AtMost, Forbid, Ordinal, Value
from paredown.nas.space import Constraint, Space


def product(**parts: Space) -> Space:
    """Every combination of the parts' architectures. Raises SearchSpaceError without parts."""
    if not parts:
        raise SearchSpaceError("a product needs spaces", got="none", remedy="write product(cell=..., bits=...)")
    for part, space in parts.items():
        if not isinstance(space, Space):
            raise SearchSpaceError("a product is of spaces", got=f"{part}={space!r}", remedy="write Space((Choice(...),))")
    return Space(
        tuple(dataclasses.replace(d, name=f"{part}.{d.name}") for part, space in parts.items() for d in space.dimensions),
        tuple(_renamed(constraint, part) for part, space in parts.items() for constraint in space.constraints),
        tuple(
            dataclasses.replace(symmetry, dimensions=tuple(f"{part}.{name}" for name in symmetry.dimensions))
            for part, space in parts.items()
            for symmetry in space.symmetries
        ),
    )


def split(values: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """The values of a product by part, names as the parts have them: `split(values)["bits"]["stem"]`."""
    parts: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        part, _, own = name.partition(".")
        parts.setdefault(part, {})[own] = value
    return parts


def per_layer(layers: Sequence[str], options: Sequence[int | float]) -> Space:
    """One ordered choice a layer: bits (8, 4), or the share of weights that are zero (0.0, 0.5)."""
    return Space(tuple(Ordinal(layer, tuple(options)) for layer in layers))


def _renamed(constraint: Constraint, part: str) -> Constraint:
    match constraint:
        case Forbid(values=values):
            return Forbid({f"{part}.{name}": value for name, value in values.items()})
        case AtMost(weights=weights, limit=limit):
            return AtMost({f"{part}.{name}": weight for name, weight in weights.items()}, limit)
        case ActiveIf(dimension=dimension, parent=parent, values=options):
            return ActiveIf(f"{part}.{dimension}", f"{part}.{parent}", options)
