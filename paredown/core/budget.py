"""What the result may cost: a drop of the metric, a latency, a size.

Latency and size are ratios to the baseline ("0.4x") or absolutes ("3 ms", "5 MB").
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from paredown.core.errors import BudgetError

Axis = Literal["latency", "size"]
_UNITS: dict[str, dict[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},                                  # in ms
    "size": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},  # in bytes
    "macs": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
}  # fmt: skip
_EXAMPLE = {"latency": '"0.4x" or "3 ms"', "size": '"0.25x" or "5 MB"', "macs": '"0.5x" or "20 M"'}


@dataclass(frozen=True)
class Limit:
    """One parsed limit: `value` is a ratio to the baseline, or an absolute in ms (latency), bytes (size) or MACs."""

    value: float
    relative: bool

    def absolute(self, baseline: float) -> float:
        """The limit in ms or bytes, given the baseline's."""
        return self.value * baseline if self.relative else self.value

    def ratio(self, baseline: float) -> float:
        """The limit as a fraction of the baseline."""
        return self.value if self.relative else self.value / baseline


@dataclass(frozen=True)
class Budget:
    """max_drop: in units of the metric (0.01 = one point of top-1), or relative to the baseline ("1%").
    latency, size: at most; None = not a constraint, though it is still measured and reported.
    confidence: of every bound that the gate looks at.
    """

    max_drop: float | str = 0.01
    latency: str | None = None
    size: str | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        _fraction(self.max_drop)
        for axis in ("latency", "size"):
            self.limit(axis)
        if not isinstance(self.confidence, int | float) or not 0.5 <= self.confidence < 1:
            raise BudgetError("confidence must be in [0.5, 1)", got=self.confidence, remedy="0.95 is the usual choice")
        if self.latency is None and self.size is None:
            raise BudgetError("a budget must name latency or size", remedy=f"add latency={_EXAMPLE['latency']}")

    def drop_limit(self, baseline: float) -> float:
        """The largest drop allowed, in units of the metric, given the baseline's value."""
        fraction = _fraction(self.max_drop)
        return fraction * abs(baseline) if isinstance(self.max_drop, str) else fraction

    def limit(self, axis: Axis) -> Limit | None:
        """The parsed limit on one axis, or None where the budget doesn't name it."""
        text = self.latency if axis == "latency" else self.size
        return None if text is None else parse_limit(axis, text)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that this budget names, besides the drop."""
        named: tuple[tuple[Axis, str | None], ...] = (("latency", self.latency), ("size", self.size))
        return tuple(axis for axis, text in named if text is not None)


def _fraction(max_drop: float | str) -> float:
    """max_drop as a fraction: "1%" -> 0.01. Raises BudgetError outside [0, 1)."""
    if isinstance(max_drop, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*", max_drop)
        if match is None or not match.group(2):
            raise BudgetError(
                "max_drop as text must be a percentage",
                got=repr(max_drop),
                remedy='write "1%", or 0.01 in metric units',
            )
        value = float(match.group(1)) / 100
    elif isinstance(max_drop, bool) or not isinstance(max_drop, int | float):
        raise BudgetError("max_drop must be a number or a percentage", got=max_drop, remedy='write 0.01 or "1%"')
    else:
        value = float(max_drop)
    if not 0 <= value < 1:  # false for NaN too
        hint = f"did you mean {value / 100:g}?" if 1 <= value < 100 else 'write 0.01 or "1%"'
        raise BudgetError("max_drop must be in [0, 1)", got=max_drop, remedy=hint)
    return value


def parse_limit(axis: str, text: str) -> Limit:
    """`"0.4x"`, `"3 ms"` (latency), `"5 MB"` (size), `"20 M"` (macs) -> Limit. Raises BudgetError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z]*)\s*", text) if isinstance(text, str) else None
    if match is None:
        raise BudgetError(f"{axis} must be a number with a unit", got=repr(text), remedy=f"write {_EXAMPLE[axis]}")
    value, unit = float(match.group(1)), match.group(2).lower()
    if not 0 < value < math.inf:
        raise BudgetError(f"{axis} must be above 0", got=text, remedy=f"write {_EXAMPLE[axis]}")
    if unit == "x":
        if value > 1:
            raise BudgetError(f"{axis} must be at most 1x the baseline", got=text, remedy=f"did you mean {1 / value:.2g}x?")
        return Limit(value, relative=True)
    if unit not in _UNITS[axis]:
        units = ", ".join(_UNITS[axis])
        raise BudgetError(f"{axis} must have a unit (x, {units})", got=repr(text), remedy=f"write {_EXAMPLE[axis]}")
    return Limit(value * _UNITS[axis][unit], relative=False)
