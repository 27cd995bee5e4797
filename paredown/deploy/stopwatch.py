"""Times two files in turn, each round in a process of its own that loads both afresh. Started by `rounds`; no torch in it.

    python -m paredown.deploy.stopwatch BASELINE CANDIDATE INPUTS.npz --runtime onnxruntime --batch 1 --threads 2

It imports the runtime once, then waits: a line with a number of pairs is answered by a line of JSON, {"times": [[ms, ...],
[ms, ...]], "others": seconds, "seconds": seconds}, {"error": [rule, got, remedy]} or {"ended": status of the round's process}.
Elsewhere than on Linux, where a fork is safe, the rounds share this one process. It ends with its parent: on Linux at once,
elsewhere after the round at hand, since its input is closed then.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from paredown.core.errors import MeasurementError, OutputError, ParedownError
from paredown.core.target import Target
from paredown.deploy.children import answers, command, end_with, tail
from paredown.deploy.ports import Array
from paredown.deploy.session import load
from paredown.measure.interleave import Round, interleaved
from paredown.measure.memory import last_line

_WARMUP = 5
_PATIENCE = 60.0  # seconds that each pair may take, and ten times that to start and load


@contextlib.contextmanager
def rounds(baseline: Path, candidate: Path, target: Target, inputs: Sequence[Array]) -> Iterator[Callable[[int], Round]]:
    """A function that times a round of so many pairs. inputs: arrays of the target's batch, in the order of the files' inputs.

    The function raises MeasurementError where a file can't be loaded or run there, where the process ends, and where a round of
    n pairs takes more than 10 + n minutes. Raises OutputError where the inputs can't be written for the process.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paredown-")))
            np.savez(folder / "inputs.npz", *inputs)
            said = stack.enter_context((folder / "stderr.txt").open("a+b"))
        except OSError as error:  # a full disk, say
            raise OutputError(
                "the inputs to time with must fit into the temporary folder",
                got=str(error),
                remedy="make room there, or set TMPDIR to a folder that has some",
            ) from error
        argv = [*command("paredown.deploy.stopwatch"), str(baseline), str(candidate), str(folder / "inputs.npz")]
        argv += ["--runtime", target.runtime, "--batch", str(target.batch), "--threads", str(target.threads)]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=said, text=True) as process:
            try:
                yield functools.partial(_round, process, said)
            finally:
                process.kill()
                with contextlib.suppress(OSError):  # what was written last may still wait for a reader
                    process.stdin.close()  # type: ignore[union-attr]  # it is a pipe


def _round(process: "subprocess.Popen[str]", said: BinaryIO, pairs: int) -> Round:
    """said: the file that the process's standard error goes to."""
    began, limit = time.monotonic(), _PATIENCE * (10 + pairs)
    answer = _asked(process, pairs, limit)
    if "times" in answer:
        return Round(np.array(answer["times"]), answer["others"], answer["seconds"])
    if "error" in answer:
        rule, got, remedy = answer["error"]
        raise MeasurementError(rule, got=got, remedy=remedy)
    if time.monotonic() - began >= limit:
        raise MeasurementError(
            f"a round of {pairs} pairs must take less than {limit:g} s", got="no answer", remedy="choose a smaller batch"
        )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    raise MeasurementError(
        "the process that times both files must not end before it has",
        got=f"{answer.get('ended', process.poll())} ({last_line(tail(said))})",
        remedy="mend what it says, or give it more memory: close other programs or choose a smaller batch",
    )


def _asked(process: "subprocess.Popen[str]", pairs: int, limit: float) -> dict[str, Any]:
    """What the process answers; {} where it ends before, as it has to after `limit` seconds, or writes something else."""
    assert process.stdin is not None and process.stdout is not None
    watch = threading.Timer(limit, process.kill)
    watch.start()
    try:
        process.stdin.write(f"{pairs}\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
    except (OSError, ValueError):
        return {}
    finally:
        watch.cancel()
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Answers until its input ends, then returns 0."""
    parser = argparse.ArgumentParser(prog="paredown.deploy.stopwatch", description=__doc__)
    for name in ("baseline", "candidate", "inputs"):
        parser.add_argument(name)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    target = Target(arguments.runtime, arguments.batch, arguments.threads)
    with contextlib.suppress(ImportError):  # said by `load`, with its remedy
        importlib.import_module(target.runtime)  # once, for all rounds; a session before a fork would leave its threads behind
    with np.load(arguments.inputs, allow_pickle=False) as saved:
        inputs = [saved[name] for name in saved.files]
    timed = functools.partial(timed_here, arguments.baseline, arguments.candidate, target, inputs)
    with answers() as out:
        for line in sys.stdin:
            (_forked if sys.platform == "linux" else _answer)(functools.partial(timed, int(line)), out)
    return 0


def timed_here(baseline: str | Path, candidate: str | Path, target: Target, inputs: Sequence[Array], pairs: int) -> Round:
    """A round in this process, both files loaded afresh. inputs: as `rounds` takes them."""
    before, after = (functools.partial(load(file, target), *inputs) for file in (baseline, candidate))
    return interleaved(before, after, pairs, _WARMUP)


def _answer(timed: Callable[[], Round], out: TextIO) -> None:
    try:
        found = timed()
        _say(out, times=found.times.tolist(), others=found.others, seconds=found.seconds)
    except ParedownError as error:
        _say(out, error=[error.rule, error.got, error.remedy])


def _say(out: TextIO, **answer: Any) -> None:
    out.write(json.dumps(answer, default=repr) + "\n")
    out.flush()


def _forked(timed: Callable[[], Round], out: TextIO) -> None:
    parent, child = os.getpid(), os.fork()
    if child == 0:
        status = 1
        try:
            end_with(parent)
            _answer(timed, out)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # no clean-up: it belongs to the parent
    _, ending = os.waitpid(child, 0)
    if ending != 0:
        _say(out, ended=os.waitstatus_to_exitcode(ending))


if __name__ == "__main__":
    end_with(os.getppid())
    raise SystemExit(main())
