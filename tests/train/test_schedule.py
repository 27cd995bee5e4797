import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.core.effort import Effort
from paredown.train.schedule import clock_of, length, rate


@pytest.mark.parametrize(("effort", "steps"), [("3 epochs", 12), ("0.5 epochs", 2), ("0.01 epochs", 1), ("7 steps", 7)])
def test_efforts_count_steps(effort: str, steps: int) -> None:
    clock = clock_of(Effort.parse(effort), [None] * 4)  # type: ignore[list-item]  # only their number is read
    assert clock.steps == steps
    assert clock.fraction(0) == 0
    assert clock.fraction(steps - 1) < 1 == clock.fraction(steps) == clock.fraction(steps + 5)


def test_processes_share_an_epoch() -> None:
    assert clock_of(Effort(2), [None] * 5, processes=2).steps == 6  # type: ignore[list-item]  # only their number is read


def test_seconds_are_counted_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    clock = clock_of(Effort.parse("20 s"), [])
    monkeypatch.setattr(time, "monotonic", lambda: 105.0)
    assert clock.fraction(12345) == 0.25
    monkeypatch.setattr(time, "monotonic", lambda: 500.0)
    assert clock.fraction(0) == 1


def test_batches_without_a_length_are_counted() -> None:
    class Stream:
        def __iter__(self) -> Iterator[None]:
            return iter([None] * 3)

    assert length(Stream()) == 3
    assert length([None, None]) == 2  # type: ignore[list-item]  # only their number is read


def test_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    assert rate(0.05, 0.1) == pytest.approx(0.5)
    assert rate(0.1, 0.1) == pytest.approx(1)
    assert rate(0.55, 0.1) == pytest.approx(0.5)
    assert rate(1, 0.1) == pytest.approx(0)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_rate_is_a_share_of_the_peak(fraction: float, warmup: float) -> None:
    assert 0 <= rate(fraction, warmup) <= 1
