import gc
import time
from collections.abc import Callable

import numpy as np
import pytest

from paredown.core.errors import MeasurementError
from paredown.core.measurement import Measurement
from paredown.measure.latency import Open, paired_latency


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> "Machine":
    """A clock that only moves when a callable of ours says so."""
    fake = Machine()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: fake.now)
    return fake


class Machine:
    def __init__(self) -> None:
        self.now, self.calls, self.slowness = 0, [], 1.0

    def callable(self, name: str, nanoseconds: int) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += round(nanoseconds * self.slowness)

        return run


def test_ratio_is_candidate_over_baseline(machine: Machine) -> None:
    result = paired_latency(always(machine.callable("a", 4_000_000)), always(machine.callable("b", 2_000_000)), device="here")
    assert (result.a.value, result.b.value, result.ratio.value) == (4.0, 2.0, 0.5)
    assert (result.a.unit, result.ratio.unit, result.ratio.n, result.ratio.device) == ("ms", "x", 54, "here")
    assert result.ratio.low == result.ratio.high == 0.5


def test_pairs_are_interleaved_in_alternating_order(machine: Machine) -> None:
    paired_latency(always(machine.callable("a", 2_000_000)), always(machine.callable("b", 2_000_000)), pairs=60, warmup=10)
    assert "".join(machine.calls) == ("a" * 10 + "b" * 10 + "abba" * 5) * 6


def test_each_round_opens_both_sides_anew(machine: Machine) -> None:
    opened: list[str] = []

    def opening(name: str) -> Open:
        def fresh() -> Callable[[], None]:
            opened.append(name)
            return machine.callable(name, 2_000_000)

        return fresh

    paired_latency(opening("a"), opening("b"))
    assert "".join(opened) == "ab" * 6


def test_an_interval_knows_that_the_pairs_of_a_round_share_their_luck(machine: Machine) -> None:
    random = np.random.default_rng(0)

    def lucky() -> Callable[[], None]:
        return machine.callable("b", round(2_000_000 * np.exp(0.05 * random.standard_normal())))

    ratio = paired_latency(always(machine.callable("a", 4_000_000)), lucky).ratio
    assert ratio.low is not None and ratio.high is not None
    assert 0.02 < (ratio.high - ratio.low) / ratio.value < 0.12
    assert ratio.low <= 0.5 <= ratio.high


def always(run: Callable[[], None]) -> Open:
    """A side that is the same each time it is opened."""
    return lambda: run


def test_quick_callables_are_repeated_until_a_timing_lasts_a_millisecond(machine: Machine) -> None:
    result = paired_latency(always(machine.callable("a", 1000)), always(machine.callable("b", 300_000)), warmup=3)
    assert machine.calls.count("a") == 6 * (3 + 9 * 1000)
    assert machine.calls.count("b") == 6 * (3 + 9 * 4)
    assert result.ratio.value == pytest.approx(300)


def test_a_machine_that_slows_down_does_not_change_the_ratio(machine: Machine) -> None:
    def slowing(run: Callable[[], None]) -> Callable[[], None]:
        def wrapped() -> None:
            machine.slowness *= 1.01
            run()

        return wrapped

    a, b = slowing(machine.callable("a", 4_000_000)), slowing(machine.callable("b", 2_000_000))
    assert paired_latency(always(a), always(b)).ratio.value == pytest.approx(0.5, rel=0.02)


def test_an_outlier_does_not_move_the_ratio(machine: Machine) -> None:
    a, quick = machine.callable("a", 2_000_000), machine.callable("b", 1_000_000)

    def b() -> None:
        quick()
        if machine.calls.count("b") % 10 == 0:
            machine.now += 50_000_000

    result = paired_latency(always(a), always(b))
    assert result.ratio.value == 0.5
    assert result.ratio.low is not None and result.ratio.high is not None
    assert result.ratio.low <= 0.5 <= result.ratio.high < 1


def test_garbage_collector_is_off_while_timing_and_on_again_afterwards(machine: Machine) -> None:
    seen: list[bool] = []
    run = machine.callable("a", 2_000_000)

    def watched() -> None:
        seen.append(gc.isenabled())
        run()

    paired_latency(always(watched), always(run))
    assert not any(seen)
    assert gc.isenabled()


def test_garbage_collector_is_on_again_after_an_error() -> None:
    def broken() -> None:
        raise RuntimeError("no session")

    with pytest.raises(RuntimeError, match="no session"):
        paired_latency(always(broken), always(broken))
    assert gc.isenabled()


def test_fewer_than_50_pairs_is_an_error_with_its_remedy() -> None:
    with pytest.raises(MeasurementError, match="at least 50, got 49; write pairs=50"):
        paired_latency(always(print), always(print), pairs=49)


def test_more_pairs_are_timed_while_the_interval_is_wide(machine: Machine) -> None:
    random = np.random.default_rng(0)

    def disturbed(run: Callable[[], None], by: float) -> Callable[[], None]:
        def wrapped() -> None:
            machine.slowness = float(np.exp(by * random.standard_normal()))
            run()

        return wrapped

    def timed(by: float) -> Measurement:
        a, b = (disturbed(machine.callable(name, time_ns), by) for name, time_ns in (("a", 4_000_000), ("b", 2_000_000)))
        return paired_latency(always(a), always(b), warmup=3).ratio

    quiet, loud, uproar = (timed(by) for by in (0.02, 0.15, 3.0))
    assert quiet.n == 54 and 54 < loud.n <= 216 and uproar.n == 216
    assert loud.upper - loud.value <= 0.06 * loud.value
