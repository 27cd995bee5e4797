"""What a search ends in: data that goes through JSON, and from which a report is drawn.

`source` says where the numbers come from, for the whole and for each result: "table" means that nothing was trained.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from paredown.core.errors import SearchError
from paredown.nas.problem import Limit, Objective, Result, SearchEffort, Source
from paredown.nas.space import Architecture, Space, Value


@dataclass(frozen=True)
class Found:
    """An architecture that the search hands back. validation: metrics that it was chosen by; test: read once, after the
    search."""

    architecture: Architecture
    values: Mapping[str, Value]
    validation: Mapping[str, float]
    test: Mapping[str, float]
    fidelity: float
    source: Source


@dataclass(frozen=True)
class Point:
    """Of the search curve. best: the first objective's metric, None while nothing is within the limits; at `fidelity`."""

    evaluations: int
    seconds: float
    best: float | None
    fidelity: float


@dataclass(frozen=True)
class SearchResult:
    """best: by the first objective, or by equal weights of several. feasible: whether it keeps the limits. front: within them,
    best in the first
    objective first. history: every result, in the order of asking. curve: one point an evaluation.
    """

    space: Space
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...]
    effort: SearchEffort
    strategy: str
    evaluator: str
    source: Source
    seed: int
    best: Found
    feasible: bool
    front: tuple[Found, ...]
    history: tuple[Result, ...]
    curve: tuple[Point, ...]

    def shared_choices(self, top: int = 10) -> dict[str, dict[str, float]]:
        """What the good ones have in common: for each dimension its options' shares among the `top` best by the first
        objective."""
        judged = [result for result in self.history if not result.failed]
        judged.sort(key=lambda result: (-result.fidelity, self.objectives[0].cost(result.metrics)))
        chosen = [self.space.values(result.architecture) for result in judged[:top]]
        counts = {d.name: Counter(str(values[d.name]) for values in chosen) for d in self.space.dimensions}
        return {name: {option: n / len(chosen) for option, n in count.most_common()} for name, count in counts.items()}

    def to_json(self) -> str:
        return str(_ADAPTER.dump_json(self, indent=1), "utf-8")

    @classmethod
    def from_json(cls, text: str) -> "SearchResult":
        """Raises SearchError where the text isn't a search's result."""
        try:
            found: SearchResult = _ADAPTER.validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise SearchError(
                "a search result is read from its own JSON",
                got=f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}",
                remedy="write it with to_json",
            ) from error
        return found


_ADAPTER: Any = pydantic.TypeAdapter(SearchResult)
