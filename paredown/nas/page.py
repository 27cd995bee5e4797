"""A search's result as what is drawn of it (`core/search_report.py`)."""

import dataclasses
from collections.abc import Sequence

from paredown.core.search_report import CurvePoint, Evaluated, Goal, Recovered, SearchReport, Within
from paredown.nas.outcome import Found, SearchResult
from paredown.nas.problem import Problem, Result


def search_report(result: SearchResult, recovered: Sequence[Recovered] = ()) -> SearchReport:
    """recovered: what was trained further after the search, best first."""
    problem = Problem(result.space, result.objectives, result.limits)
    outside = problem.violations(result.history)
    return SearchReport(
        source=result.source,
        about=_about(result),
        goals=tuple(Goal(each.metric, each.maximize) for each in result.objectives),
        limits=tuple(Within(each.metric, each.low, each.high) for each in result.limits),
        curve=tuple(CurvePoint(**dataclasses.asdict(point)) for point in result.curve),
        evaluated=tuple(_evaluated(result, each, float(by)) for each, by in zip(result.history, outside, strict=True)),
        front=tuple(_found(each) for each in result.front),
        shared=result.shared_choices(),
        recovered=tuple(recovered),
    )


def _about(result: SearchResult) -> dict[str, str]:
    seconds = sum(each.seconds for each in result.history)
    whose = "of the table" if result.source == "table" else "of evaluations"
    return {
        "strategy": result.strategy,
        "evaluator": result.evaluator,
        "space": f"{result.space.size:,} combinations of {len(result.space.dimensions)} dimensions",
        "effort": f"{result.effort.amount:g} {result.effort.unit}",
        f"seconds {whose}": f"{seconds:.0f}",
        "seed": str(result.seed),
    }


def _evaluated(result: SearchResult, each: Result, outside: float) -> Evaluated:
    values = result.space.values(each.architecture)
    return Evaluated(values, each.metrics, fidelity=each.fidelity, kept=outside <= 0, failed=each.failed)


def _found(each: Found) -> Evaluated:
    failed = f"on test data: {each.test_failed}" if each.test_failed else ""
    return Evaluated(each.values, each.validation, each.expected, each.test, each.fidelity, failed=failed)
