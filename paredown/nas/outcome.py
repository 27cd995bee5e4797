"""What a search ends in: data that goes through JSON, and from which a report is drawn.

`source` says where the numbers come from, for the whole and for each result: "table" means that nothing was trained.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic

from paredown.core.errors import SearchError
from paredown.core.page import write_page
from paredown.nas.dimensions import Value
from paredown.nas.expected import expected
from paredown.nas.problem import Limit, Objective, Problem, Result, SearchEffort, Source
from paredown.nas.scores import scores
from paredown.nas.space import Architecture, Space


@dataclass(frozen=True)
class Found:
    """An architecture that the search hands back. validation: as measured; test: read once, after the search.

    expected: of noisy validation metrics what another evaluation is expected to give, which is what chose (`nas/expected.py`).
    test_failed: why the evaluator told no test metrics, or "".
    """

    architecture: Architecture
    values: Mapping[str, Value]
    validation: Mapping[str, float]
    test: Mapping[str, float]
    fidelity: float
    source: Source
    expected: Mapping[str, float] = field(default_factory=dict)
    test_failed: str = ""


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
    render: Callable[["SearchResult"], str] | None = field(default=None, repr=False, compare=False)

    @property
    def candidates(self) -> tuple[Found, ...]:
        """Every architecture that was judged, best first, those outside the limits last; test metrics are the front's alone."""
        problem, results = Problem(self.space, self.objectives, self.limits), judged(self.history)
        worth = expected(problem, results)
        order = (-scores(problem, worth)).argsort(kind="stable")
        known = {found.architecture: found for found in (*self.front, self.best)}
        ranked = {results[i].architecture: (results[i], worth[i]) for i in order}
        return tuple(known.get(a) or as_found(self.space, *both) for a, both in ranked.items())

    def __str__(self) -> str:
        """Where the numbers come from, and the best of the front in a line each."""
        shown = "".join(f"\n  {_line(each)}" for each in (self.front or (self.best,))[:5])
        state = "" if self.feasible else ", none within the limits"
        made = f"{len(self.history)} evaluations by {self.strategy} (source: {self.source})"
        return f"{made}, front of {len(self.front)}{state}{shown}"

    def shared_choices(self, top: int = 10) -> dict[str, dict[str, float]]:
        """What the good ones have in common: for each dimension its options' shares among the `top` best by the first
        objective; those outside the limits come last."""
        good = [result for result in self.history if not result.failed]

        def rank(result: Result) -> tuple[float, float, float]:
            outside = sum(limit.violation(result.metrics) for limit in self.limits)
            return outside, -result.fidelity, self.objectives[0].cost(result.metrics)

        good.sort(key=rank)
        chosen = [self.space.values(result.architecture) for result in good[:top]]
        counts = {d.name: Counter(str(values[d.name]) for values in chosen) for d in self.space.dimensions}
        return {name: {option: n / len(chosen) for option, n in count.most_common()} for name, count in counts.items()}

    def save_html(self, path: str | pathlib.Path) -> pathlib.Path:
        """One self-contained page that opens offline, whole or not at all. Raises OutputError where it can't be written."""
        if self.render is None:
            raise SearchError(
                "a result read from JSON has no renderer", remedy="call paredown.search with the same store: nothing runs twice"
            )
        return write_page(path, self.render(self))

    def with_renderer(self, render: Callable[["SearchResult"], str]) -> "SearchResult":
        return dataclasses.replace(self, render=render)

    def to_json(self) -> str:
        return str(_ADAPTER.dump_json(self, indent=1, exclude={"render"}), "utf-8")

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


def judged(history: Sequence[Result]) -> list[Result]:
    """The results at the highest fidelity that any succeeded at."""
    good = [result for result in history if not result.failed]
    top = max((result.fidelity for result in good), default=0.0)
    return [result for result in good if result.fidelity == top]


def as_found(space: Space, result: Result, worth: Result) -> Found:
    """A result with its values by name, and what is expected of it."""
    values = space.values(result.architecture)
    better_known = {name: worth.metrics[name] for name, deviation in result.deviation.items() if deviation > 0}
    return Found(result.architecture, values, dict(result.metrics), {}, result.fidelity, result.source, better_known)


def _line(found: Found) -> str:
    metrics = {**found.validation, **{f"test: {name}": value for name, value in found.test.items()}}
    values = " ".join(f"{name}={value}" for name, value in found.values.items())
    values += f"  (no test: {found.test_failed})" if found.test_failed else ""
    return f"{', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}  {values}"


_ADAPTER: Any = pydantic.TypeAdapter(SearchResult)
