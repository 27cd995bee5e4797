"""What a model's latency is when one dependency group alone is cut to some width: data, measured in the target's runtime."""

import json
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from paredown.core.errors import MeasurementError


@dataclass(frozen=True)
class LatencyTable:
    """base_ms: of the whole model. entries: {group: {atoms kept: ms of the model with only that group cut to so many}}.

    A group stands under its name, groups that are cut together under the first one's; uncut, it costs base_ms.
    Raises MeasurementError where a time isn't positive and finite.
    """

    base_ms: float
    entries: dict[str, dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = [self.base_ms, *(ms for widths in self.entries.values() for ms in widths.values())]
        bad = [ms for ms in values if not 0 < ms < float("inf")]
        if bad:
            raise MeasurementError(
                "a latency table must hold positive, finite milliseconds", got=bad[0], remedy="measure it again"
            )

    def at(self, group: str, width: int) -> float:
        """ms of the model with only that group cut to `width`: between measured widths by linear interpolation, beyond them the
        nearest one's. base_ms for a group that was never measured."""
        points = sorted(self.entries.get(group, {}).items())
        if not points:
            return self.base_ms
        right = bisect_left([w for w, _ in points], width)
        if right == 0 or right == len(points):
            return points[min(right, len(points) - 1)][1]
        (x0, y0), (x1, y1) = points[right - 1], points[right]
        return y0 + (y1 - y0) * (width - x0) / (x1 - x0)

    def with_entry(self, group: str, width: int, ms: float) -> "LatencyTable":
        """The table with one measurement more."""
        return LatencyTable(self.base_ms, {**self.entries, group: {**self.entries.get(group, {}), width: ms}})

    def to_json(self) -> str:
        entries = {group: {str(w): ms for w, ms in sorted(widths.items())} for group, widths in self.entries.items()}
        return json.dumps({"base_ms": self.base_ms, "entries": entries}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "LatencyTable":
        """The inverse. Raises MeasurementError where the text has another form."""
        try:
            data: Any = json.loads(text)
            entries = {str(g): {int(w): float(ms) for w, ms in widths.items()} for g, widths in data["entries"].items()}
            return cls(float(data["base_ms"]), entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MeasurementError(
                "a latency table must be JSON with base_ms and entries",
                got=f"{type(error).__name__}: {error}",
                remedy="delete it, so that it is measured anew",
            ) from error
