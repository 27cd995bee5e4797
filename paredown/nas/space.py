"""A search space as data: dimensions, constraints between them, and which of its architectures are the same.

An architecture is a tuple of indices, one a dimension, each into that dimension's options; `space.values(architecture)` gives
the chosen options by name, which is what an evaluator gets. A space in ten lines:

    space = Space(
        dimensions=(
            Choice("operator", ("conv", "pool")),
            Ordinal("width", (16, 32, 64)),
            Int("depth", 1, 4),
            Int("kernel", 3, 7, step=2),
        ),
        constraints=(Forbid({"operator": ("pool",), "width": (64,)}), ActiveIf("kernel", "operator", ("conv",))),
    )
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import pydantic
from numpy.typing import NDArray

from paredown.core.errors import SearchSpaceError
from paredown.nas.dimensions import ActiveIf, AtMost, Choice, Forbid, Int, Ordinal, Value, require_options
from paredown.nas.symmetry import OPERATORS, CellSymmetry, representatives

Architecture: TypeAlias = tuple[int, ...]
Features: TypeAlias = NDArray[np.float64]
_TRIES = 10_000
_FEW = 200  # tries before it is looked at what there is
_MANY = 300  # tries after which a draw is no longer made smaller, to keep its sums
_LISTED = 1_000_000  # combinations that are listed at most


Dimension: TypeAlias = Annotated[Choice | Ordinal | Int, pydantic.Field(discriminator="kind")]
Constraint: TypeAlias = Annotated[Forbid | AtMost | ActiveIf, pydantic.Field(discriminator="kind")]


@dataclass(frozen=True)
class Space:
    """Raises SearchSpaceError where a dimension is empty or named twice, or a constraint names what isn't there."""

    dimensions: tuple[Dimension, ...]
    constraints: tuple[Constraint, ...] = ()
    symmetries: tuple[CellSymmetry, ...] = ()

    def __post_init__(self) -> None:
        for kinds, given, what in (
            ((Choice, Ordinal, Int), self.dimensions, "dimensions"),
            ((Forbid, AtMost, ActiveIf), self.constraints, "constraints"),
        ):
            if not isinstance(given, tuple | list) or not all(isinstance(each, kinds) for each in given):
                wanted = ", ".join(kind.__name__ for kind in kinds)
                raise SearchSpaceError(f"{what} must be a tuple of {wanted}", got=repr(given), remedy=f"write {what}=(...,)")
            object.__setattr__(self, what, tuple(given))
        names = [dimension.name for dimension in self.dimensions]
        if not names or len(set(names)) < len(names):
            raise SearchSpaceError("a space needs dimensions of different names", got=names, remedy="rename one, or add one")
        for dimension in self.dimensions:
            if not dimension.options or len(set(dimension.options)) < len(dimension.options):
                raise SearchSpaceError(
                    f"dimension {dimension.name} needs options that differ", got=dimension.options, remedy="list each once"
                )
        for name in (name for constraint in (*self.constraints, *self.symmetries) for name in _named(constraint)):
            if name not in names:
                raise SearchSpaceError("a constraint must name dimensions of the space", got=name, remedy=f"one of {names}")
        for constraint in self.constraints:
            self._check(constraint)
        for symmetry in self.symmetries:
            if any(self.dimensions[i].options != OPERATORS for i in self._positions(symmetry.dimensions)):
                raise SearchSpaceError(
                    "the edges of a cell have the five official operators as options, in their order",
                    got=symmetry.dimensions,
                    remedy="make the cell with cell201.space()",
                )

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Options of each dimension."""
        return tuple(len(options) for options in self._options)

    @property
    def size(self) -> int:
        """Combinations of options; constraints and symmetries make the number of different architectures smaller."""
        return math.prod(self.sizes)

    def values(self, architecture: Architecture) -> dict[str, Value]:
        """The chosen options by name. Raises SearchSpaceError for indices that don't fit."""
        if len(architecture) != len(self.sizes) or not all(0 <= i < n for i, n in zip(architecture, self.sizes, strict=True)):
            raise SearchSpaceError(
                "an architecture is one index a dimension", got=architecture, remedy=f"below {self.sizes}, from 0"
            )
        return {name: options[i] for name, options, i in zip(self._names, self._options, architecture, strict=True)}

    def architecture(self, values: Mapping[str, Value]) -> Architecture:
        """The inverse of `values`. Raises SearchSpaceError for a name or an option that the space doesn't have."""
        if set(values) != set(self._names):
            raise SearchSpaceError("an architecture names each dimension", got=sorted(values), remedy=f"name {self._names}")
        for name, options in zip(self._names, self._options, strict=True):
            if values[name] not in options:
                raise SearchSpaceError(f"{name} must be one of its options", got=values[name], remedy=f"one of {options}")
        return tuple(options.index(values[name]) for name, options in zip(self._names, self._options, strict=True))

    def allows(self, architecture: Architecture) -> bool:
        """Whether every constraint holds."""
        return all(self._holds(constraint, architecture) for constraint in self.constraints)

    def sample(self, random: np.random.Generator) -> Architecture:
        """Uniform over the combinations that the constraints allow; where these are next to none of a large space, one that
        was lowered step by step until sums kept their limits. Raises SearchSpaceError where none is found.
        """
        for tried in range(_TRIES):
            if tried >= _FEW and self._every:  # constraints leave so little that it is quicker to list it
                return self._every[int(random.integers(len(self._every)))]
            drawn: Architecture = tuple(random.integers(self._size_array).tolist())
            if self.allows(drawn):
                return drawn
            if _FEW <= tried < _MANY and self._sums and (lowered := self._lowered(drawn, random)) is not None:
                return lowered
        raise SearchSpaceError("the constraints must leave architectures over", got=f"none in {_TRIES}", remedy="loosen one")

    def _lowered(self, architecture: Architecture, random: np.random.Generator) -> Architecture | None:
        """The architecture with random dimensions moved to options that are smaller in the sums that are too large."""
        for constraint in self._sums:
            while not self._holds(constraint, architecture):
                parts = {name: weight * float(self._chosen(name, architecture)) for name, weight in constraint.weights.items()}
                lower = [
                    (self._place[name], i)
                    for name, weight in constraint.weights.items()
                    for i, option in enumerate(self._options[self._place[name]])
                    if weight * float(option) < parts[name]
                ]
                if not lower:
                    return None
                place, index = lower[int(random.integers(len(lower)))]
                architecture = _with(architecture, place, index)
        return architecture if self.allows(architecture) else None

    @functools.cached_property
    def _sums(self) -> list[AtMost]:
        return [constraint for constraint in self.constraints if isinstance(constraint, AtMost)]

    def neighbors(self, architecture: Architecture) -> list[Architecture]:
        """Those that differ in one dimension: by any other option of a Choice, by one step of an Ordinal or Int."""
        found = []
        for place, (dimension, size) in enumerate(zip(self.dimensions, self.sizes, strict=True)):
            now = architecture[place]
            near = range(size) if isinstance(dimension, Choice) else (now - 1, now + 1)
            found += [_with(architecture, place, i) for i in near if i != now and 0 <= i < size]
        return [each for each in found if self.allows(each)]

    def mutate(self, architecture: Architecture, random: np.random.Generator) -> Architecture:
        """One dimension changed: to any other option of a Choice, by up to a quarter of the range of an Ordinal or Int."""
        open_places = [place for place, size in enumerate(self.sizes) if size > 1]
        for _ in range(_FEW):
            place = open_places[int(random.integers(len(open_places)))] if open_places else 0
            size, now = self.sizes[place], architecture[place]
            reach = size if isinstance(self.dimensions[place], Choice) else max(1, size // 4)
            low, high = max(0, now - reach), min(size - 1, now + reach)
            child = _with(architecture, place, int(random.integers(low, high + 1)))
            if child != architecture and self.allows(child):
                return child
        near = self.neighbors(architecture)
        return near[int(random.integers(len(near)))] if near else self.sample(random)

    def crossover(self, one: Architecture, other: Architecture, random: np.random.Generator) -> Architecture:
        """Each dimension from one of the two parents, by a fair coin."""
        for _ in range(_FEW):
            coins = random.random(len(one)) < 0.5
            child: Architecture = tuple(a if coin else b for a, b, coin in zip(one, other, coins, strict=True))
            if self.allows(child):
                return child
        return one

    def canonicalize(self, architecture: Architecture) -> Architecture:
        """The same for all architectures that are one: dimensions that don't matter at 0, the first cell of each class."""
        idle = [place for name, place in self._place.items() if not self._active(name, architecture)] if self._parents else []
        for place in idle:
            architecture = _with(architecture, place, 0)
        for symmetry in self.symmetries:
            places = self._positions(symmetry.dimensions)
            first = representatives()[tuple(architecture[place] for place in places)]
            for place, index in zip(places, first, strict=True):
                architecture = _with(architecture, place, index)
        return architecture

    def encode(self, architectures: Sequence[Architecture]) -> Features:
        """(n, features): a Choice one-hot; an Ordinal or Int as its place in [0, 1] and the square of it."""
        indices = np.array(architectures, dtype=np.int64).reshape(len(architectures), len(self.sizes))
        return np.concatenate([block[indices[:, i]] for i, block in enumerate(self.blocks)], axis=1)

    def enumerate(self) -> Iterator[Architecture]:
        """All that the constraints allow, the last dimension fastest."""
        return filter(self.allows, itertools.product(*(range(size) for size in self.sizes)))

    def to_json(self) -> str:
        return str(_ADAPTER.dump_json(self), "utf-8")

    @classmethod
    def from_json(cls, text: str) -> "Space":
        """Raises SearchSpaceError where the text isn't a space."""
        try:
            space: Space = _ADAPTER.validate_json(text)
            return space
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise SearchSpaceError(
                "a space's JSON has dimensions, constraints and symmetries", got=f"{where}: {first['msg']}",
                remedy="write it with to_json"
            ) from error  # fmt: skip

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(dimension.name for dimension in self.dimensions)

    @functools.cached_property
    def _options(self) -> tuple[tuple[Value, ...], ...]:
        return tuple(dimension.options for dimension in self.dimensions)

    @functools.cached_property
    def _size_array(self) -> NDArray[np.int64]:
        return np.array(self.sizes)

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._names)}

    @functools.cached_property
    def blocks(self) -> list[Features]:
        """For each dimension (options, features)."""
        return [_block(dimension, size) for dimension, size in zip(self.dimensions, self.sizes, strict=True)]

    def _positions(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(self._place[name] for name in names)

    def _holds(self, constraint: Constraint, architecture: Architecture) -> bool:
        if isinstance(constraint, Forbid):
            chosen = ((self._chosen(name, architecture), values) for name, values in constraint.values.items())
            return not all(value in values for value, values in chosen)
        if isinstance(constraint, AtMost):
            total = sum(weight * float(self._chosen(name, architecture)) for name, weight in constraint.weights.items())
            return total <= constraint.limit
        return True

    @functools.cached_property
    def _parents(self) -> dict[str, list[ActiveIf]]:
        """By dimension what it depends on."""
        found: dict[str, list[ActiveIf]] = {}
        for constraint in self.constraints:
            if isinstance(constraint, ActiveIf):
                found.setdefault(constraint.dimension, []).append(constraint)
        return found

    def _active(self, name: str, architecture: Architecture) -> bool:
        return all(
            self._chosen(each.parent, architecture) in each.values and self._active(each.parent, architecture)
            for each in self._parents.get(name, ())
        )

    @functools.cached_property
    def _every(self) -> list[Architecture]:
        """All that the constraints allow, of a space that is small enough to list; else nothing."""
        return list(self.enumerate()) if self.size <= _LISTED else []

    def _check(self, constraint: Constraint) -> None:
        """Raises SearchSpaceError where a constraint can't do what it says."""
        options = dict(zip(self._names, self._options, strict=True))
        match constraint:
            case Forbid(values=values):
                if not values:
                    raise SearchSpaceError("Forbid names at least one dimension", got="none", remedy="leave it out")
                for name, listed in values.items():
                    require_options(name, listed, options[name])
            case ActiveIf(dimension=dimension, parent=parent, values=listed):
                require_options(parent, listed, options[parent])
                if dimension in self._ancestors(parent):
                    raise SearchSpaceError(
                        "ActiveIf must not go round in a circle", got=f"{dimension} and {parent}", remedy="leave one out"
                    )
            case AtMost(weights=weights, limit=limit):
                numbers = [limit, *weights.values(), *(option for name in weights for option in options[name])]
                if any(isinstance(n, str) or not isinstance(n, int | float) or not math.isfinite(n) for n in numbers):
                    raise SearchSpaceError(
                        "AtMost sums numbers, by finite weights and to a finite limit",
                        got=numbers,
                        remedy="name other dimensions",
                    )

    def _ancestors(self, name: str) -> set[str]:
        """The dimension, and what it depends on."""
        found, todo = set[str](), [name]
        while todo:
            current = todo.pop()
            if current not in found:
                found.add(current)
                todo += [each.parent for each in self._parents.get(current, ())]
        return found

    def _chosen(self, name: str, architecture: Architecture) -> Value:
        place = self._place[name]
        return self._options[place][architecture[place]]


def _with(architecture: Architecture, place: int, index: int) -> Architecture:
    return (*architecture[:place], index, *architecture[place + 1 :])


def _block(dimension: Choice | Ordinal | Int, size: int) -> Features:
    if isinstance(dimension, Choice):
        return np.eye(size)
    place = np.arange(size) / max(1, size - 1)
    return np.stack([place, place**2], axis=1)


def _named(constraint: Forbid | AtMost | ActiveIf | CellSymmetry) -> tuple[str, ...]:
    """The dimensions that a constraint speaks of."""
    match constraint:
        case Forbid():
            return tuple(constraint.values)
        case AtMost():
            return tuple(constraint.weights)
        case ActiveIf():
            return (constraint.dimension, constraint.parent)
        case CellSymmetry():
            return constraint.dimensions


_ADAPTER: Any = pydantic.TypeAdapter(Space)
