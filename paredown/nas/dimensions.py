"""What a search space is made of: dimensions with their options, and constraints between them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from paredown.core.errors import SearchSpaceError

Value: TypeAlias = str | int | float | bool


@dataclass(frozen=True)
class Choice:
    """One of several options without an order."""

    name: str
    options: tuple[Value, ...]
    kind: Literal["choice"] = "choice"

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", _plain(self.name, self.options))


@dataclass(frozen=True)
class Ordinal:
    """One of several options in their order, such as widths: neighbors are one step apart."""

    name: str
    options: tuple[Value, ...]
    kind: Literal["ordinal"] = "ordinal"

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", _plain(self.name, self.options))


@dataclass(frozen=True)
class Int:
    """A whole number from low to high, both included, in steps."""

    name: str
    low: int
    high: int
    step: int = 1
    kind: Literal["int"] = "int"

    def __post_init__(self) -> None:
        numbers = (self.low, self.high, self.step)
        if any(isinstance(n, bool) or not isinstance(n, int) for n in numbers) or self.step < 1:
            raise SearchSpaceError(
                f"dimension {self.name} goes from one whole number to another in steps of at least 1", got=numbers,
                remedy=f'write Int("{self.name}", 1, 4)'
            )  # fmt: skip

    @property
    def options(self) -> tuple[Value, ...]:
        return tuple(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True)
class Forbid:
    """No architecture has one of the given values in every one of the named dimensions at once."""

    values: Mapping[str, tuple[Value, ...]]
    kind: Literal["forbid"] = "forbid"


@dataclass(frozen=True)
class AtMost:
    """The weighted sum of the named dimensions' values (numbers) is at most `limit`."""

    weights: Mapping[str, float]
    limit: float
    kind: Literal["at_most"] = "at_most"


@dataclass(frozen=True)
class ActiveIf:
    """A dimension matters only where `parent` matters and has one of `values`; elsewhere all its options are the same
    architecture.
    """

    dimension: str
    parent: str
    values: tuple[Value, ...]
    kind: Literal["active_if"] = "active_if"


def _plain(name: str, options: Any) -> tuple[Value, ...]:
    """Options as a tuple of plain values. Raises SearchSpaceError."""
    if not isinstance(name, str) or not name:
        raise SearchSpaceError("a dimension's name must be a text", got=repr(name), remedy='write Choice("operator", (...))')
    listed = isinstance(options, tuple | list) and [each.item() if isinstance(each, np.generic) else each for each in options]
    if listed is False or not all(isinstance(each, str | int | float) and _is_finite(each) for each in listed):
        raise SearchSpaceError(
            f"options of {name} must be a tuple of texts, finite numbers or booleans", got=repr(options),
            remedy="name an option by a text, and look up by it what it stands for"
        )  # fmt: skip
    return tuple(listed)


def _is_finite(value: Value) -> bool:
    return isinstance(value, str) or math.isfinite(value)


def require_options(name: str, listed: object, options: tuple[Value, ...]) -> None:
    """Raises SearchSpaceError where a constraint lists other values than options, or none."""
    if not isinstance(listed, tuple | list) or not listed or not all(value in options for value in listed):
        raise SearchSpaceError(
            f"a constraint must list options of {name}, in a tuple", got=repr(listed), remedy=f"some of {options}"
        )
