"""Budgets, limits and efforts: what a person writes, and what it comes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.core.budget import Budget, parse_limit
from paredown.core.effort import Effort
from paredown.core.measurement import Measurement
from paredown.core.target import Target
from tests.core.strategies import budgets, efforts


def test_drop_in_metric_units_or_relative_to_the_baseline() -> None:
    assert Budget(0.01, latency="0.5x").drop_limit(0.9) == pytest.approx(0.01)
    assert Budget("1%", latency="0.5x").drop_limit(0.9) == pytest.approx(0.009)
    assert Budget("1%", latency="0.5x").drop_limit(-2.0) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("axis", "text", "value", "relative"),
    [
        ("latency", "0.4x", 0.4, True),
        ("latency", " 3 ms ", 3.0, False),
        ("latency", "250us", 0.25, False),
        ("latency", "1 s", 1000.0, False),
        ("size", ".25X", 0.25, True),
        ("size", "5 MB", 5e6, False),
        ("size", "64 KiB", 65536.0, False),
        ("macs", "20 M", 2e7, False),
    ],
)
def test_limits_are_ratios_or_absolutes_with_units(axis: str, text: str, value: float, relative: bool) -> None:
    limit = parse_limit(axis, text)
    assert limit.value == pytest.approx(value)
    assert limit.relative is relative


@given(st.floats(0.01, 1), st.floats(0.01, 1e6))
def test_limit_as_ratio_and_as_absolute_agree(fraction: float, baseline: float) -> None:
    limit = parse_limit("latency", f"{fraction:f}x")
    assert limit.absolute(baseline) / baseline == pytest.approx(limit.ratio(baseline))


@given(budgets)
def test_budget_names_exactly_the_axes_it_limits(budget: Budget) -> None:
    assert [axis for axis in ("latency", "size") if budget.limit(axis) is not None] == list(budget.axes)


@given(efforts)
def test_effort_round_trips_through_its_text(effort: Effort) -> None:
    assert Effort.parse(str(effort)) == effort


@pytest.mark.parametrize(
    ("text", "effort"),
    [
        ("3 epochs", Effort(3, "epochs")),
        ("1 epoch", Effort(1, "epochs")),
        ("200 steps", Effort(200, "steps")),
        ("60s", Effort(60, "seconds")),
        ("5 min", Effort(300, "seconds")),
        ("0.5 h", Effort(1800, "seconds")),
    ],
)
def test_effort_reads_as_people_write_it(text: str, effort: Effort) -> None:
    assert Effort.parse(text) == effort
    assert Effort.parse(effort) is effort


def test_target_takes_a_runtimes_name_alone() -> None:
    assert Target.of("openvino").runtime == "openvino"
    assert Target.of(Target(batch=4)).batch == 4
    assert str(Target("onnxruntime", batch=64, threads=1)) == "onnxruntime, batch 64, 1 thread"


def test_measurement_reads_as_value_unit_and_interval() -> None:
    assert str(Measurement("latency_ms", 3.21, "ms", 50, 3.1, 3.3)) == "3.21 ms [3.1, 3.3]"
    assert str(Measurement("latency_ratio", 0.45, "x")) == "0.45x"
    assert str(Measurement("top1", 0.9173)) == "0.9173"
