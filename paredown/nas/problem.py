"""What a search is asked for, and what strategy and evaluators hand each other: all of it plain data.

A metric is a name and a number. Objectives and limits name metrics, and a metric may be known only after an evaluation.
A fidelity is the share of the full training that an evaluation spends, in (0, 1].
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.core.errors import SearchError
from paredown.core.fields import seed_number
from paredown.core.search_report import Source as Source  # noqa: PLC0414 (results name their source)
from paredown.nas.space import Architecture, Space

Vector: TypeAlias = NDArray[np.float64]
Capacity: TypeAlias = Callable[[Architecture], float]  # parameters or MACs, known without an evaluation
_FULL = 1.0


@dataclass(frozen=True)
class Objective:
    """A metric to be made small, or large."""

    metric: str
    maximize: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not isinstance(self.maximize, bool):
            raise SearchError(
                "an objective is a metric's name, and whether it is to be large", got=(self.metric, self.maximize),
                remedy='write Objective("accuracy", maximize=True)'
            )  # fmt: skip

    def cost(self, metrics: Mapping[str, float]) -> float:
        """Smaller is better. Raises SearchError where the evaluation gave no such metric."""
        return -_metric(metrics, self.metric) if self.maximize else _metric(metrics, self.metric)


ACCURACY = (Objective("accuracy", maximize=True),)


@dataclass(frozen=True)
class Limit:
    """A hard constraint: low <= metric <= high, either end open if None."""

    metric: str
    high: float | None = None
    low: float | None = None

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        if not ends or not all(isinstance(end, int | float) and math.isfinite(end) for end in ends) or sorted(ends) != ends:
            raise SearchError(
                f"a limit of {self.metric} needs finite numbers, low no more than high", got=f"low={self.low}, high={self.high}",
                remedy=f'write Limit("{self.metric}", high=1.0)'
            )  # fmt: skip

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much the metric is outside, as a share of the limit (of 1, where that is 0); 0 inside."""
        value = _metric(metrics, self.metric)
        over = 0.0 if self.high is None else (value - self.high) / (abs(self.high) or 1.0)
        under = 0.0 if self.low is None else (self.low - value) / (abs(self.low) or 1.0)
        return max(0.0, over, under)


@dataclass(frozen=True)
class SearchEffort:
    """How long a search may go on: a number of evaluations, or the seconds that they report (a table's are simulated)."""

    amount: float
    unit: Literal["evaluations", "seconds"] = "evaluations"

    def __post_init__(self) -> None:
        if not 0 < self.amount < float("inf"):
            raise SearchError("a search's effort must be a positive amount", got=self.amount, remedy='write "200 evaluations"')
        if self.unit == "evaluations" and self.amount != int(self.amount):
            raise SearchError("evaluations are counted in whole ones", got=self.amount, remedy='write "200 evaluations"')

    @classmethod
    def parse(cls, value: "int | str | SearchEffort") -> "SearchEffort":
        """200, "200 evaluations", "20000 s", "2 h"; a SearchEffort passes through."""
        if isinstance(value, SearchEffort):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
        unit = match.group(2) if match else "?"
        if match is None or unit not in _UNITS:
            raise SearchError(
                "a search's effort is a number of evaluations, seconds (s), minutes (min) or hours (h)", got=value,
                remedy='write "200 evaluations"'
            )  # fmt: skip
        seconds = _UNITS[unit]
        amount = float(match.group(1))
        return cls(amount, "evaluations") if seconds is None else cls(amount * seconds, "seconds")


_UNITS = {
    "": None, "evaluation": None, "evaluations": None, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0,
}  # fmt: skip


_LIKE: dict[type, str] = {
    Objective: 'write (Objective("accuracy", maximize=True),)',
    Limit: 'write (Limit("params", high=1e6),)',
}


@dataclass(frozen=True)
class Problem:
    """All that a strategy is told before it begins.

    fidelities: those that the evaluator knows, ascending; a strategy that knows only one uses the first. capacity: where the
    evaluator knows it.
    """

    space: Space
    objectives: tuple[Objective, ...] = ACCURACY
    limits: tuple[Limit, ...] = ()
    effort: SearchEffort = field(default_factory=lambda: SearchEffort(100))
    fidelities: tuple[float, ...] = (_FULL,)
    seed: int = 0
    capacity: Capacity | None = None

    def __post_init__(self) -> None:
        seed_number(self.seed)
        for kind, given, what in ((Objective, self.objectives, "objectives"), (Limit, self.limits, "limits")):
            if not all(isinstance(each, kind) for each in given):
                raise SearchError(f"{what} must be a tuple of {kind.__name__}", got=repr(given), remedy=_LIKE[kind])
        if not isinstance(self.space, Space):
            raise SearchError("a search needs a Space", got=type(self.space).__name__, remedy="write Space((Choice(...),))")
        if not self.objectives:
            raise SearchError("a search needs an objective", got="none", remedy='pass Objective("accuracy", maximize=True)')
        rising = list(self.fidelities) == sorted(set(self.fidelities))
        if not self.fidelities or not rising or not 0 < self.fidelities[0] <= self.fidelities[-1] <= 1:
            raise SearchError("fidelities ascend within (0, 1]", got=self.fidelities, remedy="write fidelities=(0.1, 1.0)")

    def require_metrics(self, metrics: Mapping[str, float]) -> None:
        """Raises SearchError where an objective or a limit names a metric that an evaluation doesn't give."""
        for name in (*(objective.metric for objective in self.objectives), *(limit.metric for limit in self.limits)):
            _metric(metrics, name)

    def costs(self, results: Sequence["Result"]) -> NDArray[np.float64]:
        """(n, objectives), smaller better; infinite where an evaluation failed."""
        failed = [float("inf")] * len(self.objectives)
        rows = [failed if r.failed else [objective.cost(r.metrics) for objective in self.objectives] for r in results]
        return np.array(rows, dtype=np.float64).reshape(len(results), len(self.objectives))

    def violations(self, results: Sequence["Result"]) -> Vector:
        """(n,): how far outside all limits together; 0 where every limit holds, infinite where an evaluation failed."""
        rows = [float("inf") if r.failed else sum(limit.violation(r.metrics) for limit in self.limits) for r in results]
        return np.array(rows, dtype=np.float64)


@dataclass(frozen=True)
class Proposal:
    """What a strategy wants evaluated."""

    architecture: Architecture
    fidelity: float = _FULL


@dataclass(frozen=True)
class Result:
    """What came out. metrics: on validation data only. seconds: what it cost. failed: why it gave no metrics, or "".

    deviation: the standard deviation of a metric as an estimate; one that isn't named is taken as exact.
    """

    architecture: Architecture
    fidelity: float
    metrics: Mapping[str, float]
    seconds: float = 0.0
    source: Source = "function"
    failed: str = ""
    deviation: Mapping[str, float] = field(default_factory=dict)


def _metric(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise SearchError("an objective or limit names a metric of the evaluator", got=name, remedy=f"one of {sorted(metrics)}")
    return metrics[name]
