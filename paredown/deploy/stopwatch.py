"""Times two files in turn, each round in a process of its own that loads both afresh. Started by `rounds`; no torch in it.

    python -m paredown.deploy.stopwatch BASELINE CANDIDATE INPUTS.npz --runtime onnxruntime --batch 1 --threads 2

It imports the runtime once, then waits: a line with a number of pairs is answered by a line of JSON, {"times": [[ms, ...],
[ms, ...]], "others": seconds, "seconds": seconds} or {"error": "..."}. Elsewhere than on Linux, where a fork is safe, the
rounds share this one process.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paredown.core.errors import MeasurementError, ParedownError
from paredown.core.target import Target
from paredown.deploy.children import command
from paredown.deploy.ports import Array
from paredown.deploy.session import load
from paredown.measure.interleave import Round, interleaved

_WARMUP = 5


@contextlib.contextmanager
def rounds(baseline: Path, candidate: Path, target: Target, inputs: Sequence[Array]) -> Iterator[Callable[[int], Round]]:
    """A function that times a round of so many pairs. inputs: arrays of the target's batch, in the order of the files' inputs.

    The function raises MeasurementError where a file can't be loaded or run there, or where the process ends.
    """
    with tempfile.TemporaryDirectory(prefix="paredown-") as folder:
        arrays = Path(folder) / "inputs.npz"
        np.savez(arrays, *inputs)
        argv = [*command("paredown.deploy.stopwatch"), str(baseline), str(candidate), str(arrays)]
        argv += ["--runtime", target.runtime, "--batch", str(target.batch), "--threads", str(target.threads)]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                yield functools.partial(_round, process, argv)
            finally:
                process.kill()
                with contextlib.suppress(OSError):  # what was written last may still wait for a reader
                    process.stdin.close()  # type: ignore[union-attr]  # it is a pipe


def _round(process: "subprocess.Popen[str]", argv: list[str], pairs: int) -> Round:
    assert process.stdin is not None and process.stdout is not None
    answer: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # it ended, or what it wrote is no JSON
        process.stdin.write(f"{pairs}\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
    if "times" not in answer:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        raise MeasurementError(
            "both files must run in the process that times them",
            got=answer.get("error", f"it ended with {process.poll()}"),
            remedy=f"run it by hand: {shlex.join(argv)}",
        )
    return Round(np.array(answer["times"]), answer["others"], answer["seconds"])


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
    for line in sys.stdin:
        (_forked if sys.platform == "linux" else _answer)(functools.partial(timed, int(line)))
    return 0


def timed_here(baseline: str | Path, candidate: str | Path, target: Target, inputs: Sequence[Array], pairs: int) -> Round:
    """A round in this process, both files loaded afresh. inputs: as `rounds` takes them."""
    before, after = (functools.partial(load(file, target), *inputs) for file in (baseline, candidate))
    return interleaved(before, after, pairs, _WARMUP)


def _answer(timed: Callable[[], Round]) -> None:
    try:
        found = timed()
        _say(times=found.times.tolist(), others=found.others, seconds=found.seconds)
    except ParedownError as error:
        _say(error=str(error))


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _forked(timed: Callable[[], Round]) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _answer(timed)
            status = 0
        finally:
            os._exit(status)  # no clean-up: it belongs to the parent
    _, ending = os.waitpid(child, 0)
    if ending != 0:
        _say(error=f"the process of a round ended with {os.waitstatus_to_exitcode(ending)}")


if __name__ == "__main__":
    raise SystemExit(main())
