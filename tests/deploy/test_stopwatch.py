import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paredown.core.errors import MeasurementError
from paredown.core.target import Target
from paredown.deploy import stopwatch
from paredown.deploy.session import inputs_for, load


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


def test_without_fork_rounds_share_a_process(floating, tmp_path: Path, monkeypatch, capsys) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, *inputs_for(load(floating.path), 1).values())
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n3\n"))
    assert stopwatch.main([floating.path, floating.path, str(inputs), "--threads", "1"]) == 0
    shapes = [np.shape(json.loads(line)["times"]) for line in capsys.readouterr().out.splitlines()]
    assert shapes == [(2, 2), (2, 3)]


def test_a_file_that_cannot_be_loaded_there_is_a_typed_error(floating, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    arrays = list(inputs_for(load(floating.path), 1).values())
    with (
        stopwatch.rounds(Path(floating.path), broken, Target(threads=1), arrays) as timed,
        pytest.raises(MeasurementError, match=r"complete ONNX model, got broken\.onnx .*run it by hand"),
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
    assert json.loads(run.stdout) == {"error": f"the process of a round ended with {status}"}


def test_a_process_that_ends_is_a_typed_error() -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        pytest.raises(MeasurementError, match="it ended with"),
    ):
        stopwatch._round(process, command, 5)
