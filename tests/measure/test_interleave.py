import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from paredown.measure import interleave
from paredown.measure.interleave import interleaved

PAIRS = 10


def test_pairs_are_interleaved_in_alternating_order(machine) -> None:
    times = interleaved(machine.callable("a", 2_000_000), machine.callable("b", 3_000_000), PAIRS, 10).times
    assert "".join(machine.calls) == "a" * 10 + "b" * 10 + "abba" * 5
    np.testing.assert_array_equal(times, [[2.0] * PAIRS, [3.0] * PAIRS])


def test_quick_callables_are_repeated_until_a_timing_lasts_a_millisecond(machine) -> None:
    times = interleaved(machine.callable("a", 1000), machine.callable("b", 300_000), PAIRS, 0).times
    assert machine.calls.count("a") == 3 + PAIRS * 1000
    assert machine.calls.count("b") == 3 + PAIRS * 4
    np.testing.assert_allclose(times[1] / times[0], 300)


def test_a_machine_that_slows_down_does_not_change_the_ratio(machine) -> None:
    def slowing(run: Callable[[], None]) -> Callable[[], None]:
        def wrapped() -> None:
            machine.slowness *= 1.01
            run()

        return wrapped

    a, b = slowing(machine.callable("a", 4_000_000)), slowing(machine.callable("b", 2_000_000))
    times = interleaved(a, b, PAIRS, 3).times
    assert np.median(times[1] / times[0]) == pytest.approx(0.5, rel=0.02)
    assert times[0, -1] > 1.1 * times[0, 0]


def test_garbage_collector_is_off_while_timing_and_on_again_afterwards(machine) -> None:
    seen: list[bool] = []
    run = machine.callable("a", 2_000_000)

    def watched() -> None:
        seen.append(gc.isenabled())
        run()

    interleaved(watched, run, PAIRS, 3)
    assert not any(seen)
    assert gc.isenabled()


def test_garbage_collector_is_on_again_after_an_error() -> None:
    def broken() -> None:
        raise RuntimeError("no session")

    with pytest.raises(RuntimeError, match="no session"):
        interleaved(broken, broken, PAIRS, 3)
    assert gc.isenabled()


def test_load_is_what_other_processes_took_of_the_processors(machine, monkeypatch, tmp_path: Path) -> None:
    """In ten seconds the machine was busy for 7 seconds of its processors, this process for 4.5 of them."""
    stat, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(interleave, "_STAT", stat)
    states = iter([(100, 2.0, 50.0), (107, 6.5, 60.0)])

    def pass_on(*_: object) -> None:
        busy, mine, now = next(states)
        idle, iowait, steal = 12345 * mine, 678 * mine, busy - 90  # 90 of user, the rest of it stolen
        stat.write_text(f"cpu {90 * ticks} 0 0 {idle:.0f} {iowait:.0f} 0 0 {steal * ticks} 0 0\ncpu0 1 2 3\n")
        monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=mine - 1, system=1.0))
        monkeypatch.setattr(time, "monotonic", lambda: now)

    def last(run: Callable[[], None]) -> Callable[[], None]:
        return lambda: pass_on() if len(machine.calls) == 3 + 3 + 2 * PAIRS - 1 else run()

    pass_on()
    run = machine.callable("a", 2_000_000)
    found = interleaved(last(run), last(run), PAIRS, 3)
    assert (found.others, found.seconds) == pytest.approx((7 - 4.5, 10))


def test_a_system_that_counts_no_load_is_taken_as_quiet(machine, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(interleave, "_STAT", tmp_path / "none")
    assert interleaved(machine.callable("a", 2_000_000), machine.callable("b", 2_000_000), PAIRS, 3).others == 0
