import signal
import sys

import pytest

from paredown.core.errors import MeasurementError
from paredown.measure import memory
from paredown.measure.memory import peak_memory
from tests.conftest import after


def test_peak_counts_what_the_child_allocates() -> None:
    small = peak_memory([sys.executable, "-c", "pass"])
    large = peak_memory([sys.executable, "-c", "x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096])"])
    assert (large.metric, large.unit) == ("memory_mb", "MB")
    assert 190 <= large.value - small.value <= 230


def test_peak_of_a_small_child_is_not_that_of_this_large_process() -> None:
    ballast = bytearray(150_000_000)
    ballast[::4096] = b"1" * len(ballast[::4096])
    assert peak_memory([sys.executable, "-S", "-c", "pass"]).value < 60


def test_output_of_the_child_does_not_disturb_the_measurement() -> None:
    assert peak_memory([sys.executable, "-c", "print('[1, 2]')"]).value > 1


def test_failing_child_is_an_error_with_its_last_line() -> None:
    with pytest.raises(MeasurementError, match="got 1 \\(ValueError: no such model\\); run it by hand"):
        peak_memory([sys.executable, "-c", "raise ValueError('no such model')"])


def test_killed_child_is_an_error_with_its_signal() -> None:
    with pytest.raises(MeasurementError, match="got -9"):
        peak_memory([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])


def test_missing_program_is_an_error_that_names_it() -> None:
    with pytest.raises(MeasurementError, match="no-such-program: No such file"):
        peak_memory(["no-such-program"])


def test_child_that_does_not_end_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(memory, "_LIMIT", 1)
    with pytest.raises(MeasurementError, match="must end within 1 s"):
        peak_memory([sys.executable, "-S", "-c", "import time; time.sleep(20)"])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere an alarm ends the child, later")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_child_ends_with_the_process_that_measures_it(ending: signal.Signals) -> None:
    last = "import os, time; out = open(os.environ['OUT'], 'w', 1); out.write('begun\\n'); time.sleep(5); out.write('outlived')"
    start = "from paredown.measure.memory import peak_memory; peak_memory([sys.executable, '-c', last])"
    assert after(ending, start, last) == ""
