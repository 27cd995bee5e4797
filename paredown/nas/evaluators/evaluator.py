"""What evaluates an architecture: a job goes in, an outcome comes out, both plain data, so that any process can do it.

A user's evaluator is a module-level function of the values, `def accuracy(values): ... return 0.93` (or a dict of metrics);
or, with fidelities of its own, anything that holds to `Evaluator`. It must pickle where other processes run it.
"""

import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from paredown.core.errors import SearchError
from paredown.nas.dimensions import Value
from paredown.nas.problem import Capacity, Result, Source
from paredown.nas.space import Architecture

Values: TypeAlias = Mapping[str, Value]
Function: TypeAlias = Callable[[Values], "float | Mapping[str, float]"]


@dataclass(frozen=True)
class Job:
    """values: an architecture's options by name. fidelity: share of the full training. seed: of whatever is random in it."""

    architecture: Architecture
    values: Values
    fidelity: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """metrics: by name, on validation data. seconds: that it cost; of a table, those that the table's authors measured.

    deviation: of a metric as an estimate, one standard deviation, where that is known; the best of many noisy values is the
    luckiest, so what is chosen in the end is chosen by what is expected of it (`nas/expected.py`).
    """

    metrics: Mapping[str, float]
    seconds: float = 0.0
    deviation: Mapping[str, float] = field(default_factory=dict)


class Evaluator(Protocol):
    """source: "training" only where something is trained. fidelities: ascending, in (0, 1]."""

    @property
    def source(self) -> Source: ...

    @property
    def fidelities(self) -> tuple[float, ...]: ...

    @property
    def name(self) -> str:
        """Tells it from others in a store."""
        ...

    def evaluate(self, job: Job) -> Outcome: ...


@runtime_checkable
class Tested(Protocol):
    """An evaluator that can also tell test metrics: asked for the front only, after the search, for the report.

    Where it takes a `seed` too, that is the search's.
    """

    def test(self, values: Values) -> Mapping[str, float]: ...


@runtime_checkable
class Sized(Protocol):
    """An evaluator that knows at once how large an architecture's network is, in parameters or MACs; None: it doesn't.

    Strategies may begin with large ones, and learn from it; of an elastic space it is of no use: what limits the search there
    is the size itself, or it is an objective.
    """

    @property
    def size_of(self) -> Capacity | None: ...


@dataclass(frozen=True)
class FunctionEvaluator:
    """A plain function as an evaluator; a single number becomes the metric `metric`."""

    function: Function
    metric: str = "accuracy"
    source: Source = "function"
    fidelities: tuple[float, ...] = (1.0,)

    @property
    def name(self) -> str:
        return named(self.function)

    def evaluate(self, job: Job) -> Outcome:
        start = time.perf_counter()
        found = self.function(job.values)
        metrics = dict(found) if isinstance(found, Mapping) else {self.metric: found}
        return Outcome(metrics, time.perf_counter() - start)


def named(function: Callable[..., Any]) -> str:
    """The name of a function, or of an object that is called, and a digest of its code and of the values that it holds."""
    from paredown.task.described import described  # imports torch, which a worker that only calls a function needs not

    inner = function.func if isinstance(function, functools.partial) else function
    own = getattr(inner, "__qualname__", type(inner).__qualname__)
    digest = hashlib.blake2b(described(function).encode(), digest_size=4).hexdigest()
    return f"{getattr(inner, '__module__', '')}.{own} {digest}"


def as_evaluator(value: "Evaluator | Function", metric: str = "accuracy") -> Evaluator:
    """An evaluator passes through; a function of the values is wrapped. Raises SearchError for anything else."""
    if hasattr(value, "evaluate"):
        return cast(Evaluator, value)
    if not callable(value):
        raise SearchError(
            "evaluate is a function of the values, or an Evaluator", got=type(value).__name__, remedy="pass a function"
        )
    return FunctionEvaluator(value, metric)


def run_job(evaluator: Evaluator, job: Job) -> Result:
    """The job's result; an exception of the evaluator, or a metric that is no finite number, makes a failed one.

    Its seconds are the evaluator's own; what it takes where it says none, or fails: a budget in seconds has to end.
    """
    start = time.perf_counter()
    try:
        outcome = evaluator.evaluate(job)
        metrics, deviation = _numbers(outcome.metrics), _numbers(outcome.deviation)
        stated = _finite("seconds", outcome.seconds)
    except Exception as error:  # the user's code: whatever it raises, the search goes on
        why = str(error) if isinstance(error, SearchError) else f"{type(error).__name__}: {error}"
        return failure(job, evaluator.source, why, time.perf_counter() - start)
    seconds = stated if stated > 0 else time.perf_counter() - start
    return Result(job.architecture, job.fidelity, metrics, seconds, evaluator.source, deviation=deviation)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Plain numbers, of numpy's and torch's too."""
    return {name: _finite(name, value) for name, value in values.items()}


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SearchError(f"{name} must be a number", got=repr(value), remedy="leave out what is none") from None
    if not math.isfinite(number):
        raise SearchError(f"{name} must be finite", got=number, remedy="raise an error where nothing can be measured")
    return number


def failure(job: Job, source: Source, why: str, seconds: float = 0.0) -> Result:
    return Result(job.architecture, job.fidelity, {}, seconds, source, why or "failed")
