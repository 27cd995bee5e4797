import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from paredown.core.errors import MeasurementError, OutputError
from paredown.core.target import Target
from paredown.deploy import stopwatch
from paredown.deploy.session import inputs_for, load
from paredown.measure.interleave import Round
from tests.conftest import after


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_each_round_has_its_pairs(floating, runtime) -> None:
    target = Target(runtime, 2, 1)
    arrays = list(inputs_for(load(floating.path, target), 2).values())
    with stopwatch.rounds(Path(floating.path), Path(floating.path), target, arrays) as timed:
        first, second = timed(4), timed(3)
    assert first.times.shape == (2, 4) and second.times.shape == (2, 3)
    assert (first.times > 0).all() and first.seconds > 0


def test_a_round_is_a_process_of_its_own_without_torch(floating, tmp_path: Path) -> None:
    """What times says which process it is, and whether torch is in it."""
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, *inputs_for(load(floating.path), 1).values())
    code = (
        "import os, sys; from paredown.deploy import stopwatch; from paredown.measure.interleave import Round; import numpy; "
        "stopwatch.interleaved = lambda *_: Round(numpy.full((2, 1), os.getpid()), float('torch' in sys.modules), 1.0); "
        f"raise SystemExit(stopwatch.main([{floating.path!r}, {floating.path!r}, {str(inputs)!r}]))"
    )
    run = subprocess.run([sys.executable, "-c", code], input="1\n1\n", capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0 and len(answers) == 2, run.stderr
    assert answers[0]["times"] != answers[1]["times"] and [answer["others"] for answer in answers] == [0.0, 0.0]


def test_without_fork_rounds_share_a_process(floating, tmp_path: Path, monkeypatch, capfd) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, *inputs_for(load(floating.path), 1).values())
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n3\n"))
    assert stopwatch.main([floating.path, floating.path, str(inputs), "--threads", "1"]) == 0
    shapes = [np.shape(json.loads(line)["times"]) for line in capfd.readouterr().out.splitlines()]
    assert shapes == [(2, 2), (2, 3)]


def test_a_file_that_cannot_be_loaded_there_is_a_typed_error(floating, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    arrays = list(inputs_for(load(floating.path), 1).values())
    with (
        stopwatch.rounds(Path(floating.path), broken, Target(threads=1), arrays) as timed,
        pytest.raises(MeasurementError, match=r"complete ONNX model, got broken\.onnx .*export it again"),
    ):
        timed(5)


@pytest.mark.skipif(sys.platform != "linux", reason="rounds share the process that the parent waits for")
@pytest.mark.parametrize(("end", "status"), [("os.kill(os.getpid(), signal.SIGKILL)", -9), ("1 / 0", 1)])
def test_a_round_that_ends_early_is_answered_all_the_same(floating, tmp_path: Path, end: str, status: int) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, *inputs_for(load(floating.path), 1).values())
    code = (
        "import os, signal; from paredown.deploy import stopwatch; "
        f"stopwatch.interleaved = lambda *_: {end}; "
        f"stopwatch.main([{floating.path!r}, {floating.path!r}, {str(inputs)!r}])"
    )
    run = subprocess.run([sys.executable, "-c", code], input="1\n", capture_output=True, text=True, check=False)
    assert json.loads(run.stdout) == {"ended": status}


_START = (
    "import os, sys, time, numpy; from paredown.deploy import children, stopwatch; "
    "from paredown.measure.interleave import Round; one = Round(numpy.ones((2, 1)), 0.0, 1.0); children.end_with(os.getppid()); "
    "stopwatch.timed_here = lambda *_: {}; stopwatch.main()"
)


@contextlib.contextmanager
def timing(round_: str) -> Iterator[Callable[[int], Round]]:
    """`rounds` with its process, in which each round is an expression of ours; `one` is a Round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "command", lambda _: [sys.executable, "-c", _START.format(round_)])
        with stopwatch.rounds(Path("a.onnx"), Path("b.onnx"), Target(threads=1), [np.ones(1)]) as timed:
            yield timed


@pytest.mark.parametrize(
    ("end", "got"),
    [
        ("1 / 0", r"1 \(ZeroDivisionError: division by zero\)"),
        ("(os.write(2, b'no memory\\n\\n'), os.kill(os.getpid(), 9))", r"-9 \(no memory\)"),
        ("(os.kill(os.getppid(), 9), time.sleep(20))", r"-9 \(no message\)"),
    ],
)
def test_a_process_that_ends_is_a_typed_error_with_its_last_words_and_without_files_that_are_gone(end: str, got: str) -> None:
    with timing(end) as timed, pytest.raises(MeasurementError, match=f"must not end before it has, got {got}; ") as caught:
        timed(5)
    assert tempfile.gettempdir() not in str(caught.value)


def test_what_a_library_prints_is_no_answer() -> None:
    with timing("(print('hello', flush=True), os.write(1, b'from C\\n'), one)[-1]") as timed:
        assert timed(1).times.tolist() == [[1.0], [1.0]]


def test_a_round_that_does_not_end_is_a_typed_error(monkeypatch) -> None:
    monkeypatch.setattr(stopwatch, "_PATIENCE", 0.1)
    with timing("time.sleep(20)") as timed, pytest.raises(MeasurementError, match=r"2 pairs must take less than 1\.2 s"):
        timed(2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a round in hand goes on to its end")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_round_ends_with_the_process_that_asked_for_it(ending: signal.Signals) -> None:
    last = "((out := open(os.environ['OUT'], 'w', 1)).write('begun\\n'), time.sleep(5), out.write('outlived'))"
    start = "from tests.deploy.test_stopwatch import timing\nwith timing(last) as timed: timed(1)"
    assert after(ending, start, last) == ""


def test_a_full_disk_is_a_typed_error(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OutputError, match="No space left on device; make room there"), timing("one"):
        pass
