"""What an architecture search hands over to be drawn: plain data, of any space, any strategy, any evaluator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from paredown.core.measurement import Measurement

Option: TypeAlias = str | int | float | bool
Source = Literal["table", "training", "supernet", "proxy", "function"]  # where numbers come from


@dataclass(frozen=True)
class Goal:
    """A metric that is made small, or large."""

    metric: str
    maximize: bool = False


@dataclass(frozen=True)
class Within:
    """A metric that must stay between two values; an end that is None is open."""

    metric: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """After so many evaluations: the best value of the first objective within the limits (None: none yet), at that fidelity."""

    evaluations: int
    seconds: float
    best: float | None
    fidelity: float = 1.0


@dataclass(frozen=True)
class Evaluated:
    """One architecture. validation: what it was judged by. expected: of noisy metrics what chose instead. test: read once, at the
    end, for the front alone. kept: whether it keeps the limits. failed: why it has no metrics, in the front no test metrics; or
    "".
    """

    values: Mapping[str, Option]
    validation: Mapping[str, float]
    expected: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    fidelity: float = 1.0
    kept: bool = True
    failed: str = ""


@dataclass(frozen=True)
class Recovered:
    """A subnet after its recovery, against the original: figures of its file on validation, and on test, which nothing was
    chosen by. inherited: the metric with the supernet's weights.
    """

    values: Mapping[str, Option]
    inherited: float
    quality: Measurement
    drop: Measurement
    test_quality: Measurement | None = None
    test_drop: Measurement | None = None
    latency_ratio: Measurement | None = None
    macs: int = 0
    parameters: int = 0


@dataclass(frozen=True)
class SearchReport:
    """about: facts by name, in their order (strategy, evaluator, effort, seed, ...). front: within the limits, best in the first
    objective first; empty where nothing keeps them. shared: {dimension: {option: its share among the best}}.
    """

    source: Source
    about: Mapping[str, str]
    goals: tuple[Goal, ...]
    limits: tuple[Within, ...]
    curve: tuple[CurvePoint, ...]
    evaluated: tuple[Evaluated, ...]
    front: tuple[Evaluated, ...]
    shared: Mapping[str, Mapping[str, float]]
    recovered: tuple[Recovered, ...] = ()

    @property
    def best(self) -> Evaluated | None:
        """By the first objective within the limits."""
        return self.front[0] if self.front else None
