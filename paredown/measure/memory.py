"""Peak memory of a child process, as the operating system counted it.

The child is started by a small Python process, not by this one: on Linux a process inherits the peak of the one that
started it, and this one holds torch and the model. On Linux both are killed when this one ends (PR_SET_PDEATHSIG, man 2 prctl);
anywhere an alarm, which outlives exec, ends a child that takes too long.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from paredown.core.errors import MeasurementError
from paredown.core.measurement import Measurement

_LAUNCHER = """
import ctypes, json, os, signal, sys

def end_with_parent():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

end_with_parent()
child = os.fork()
if child == 0:
    end_with_parent()
    signal.alarm(int(sys.argv.pop(1)))
    os.dup2(2, 1)
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        print(f"{sys.argv[1]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss]))
"""
_LIMIT = 3600  # seconds
_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in which ru_maxrss counts


def peak_memory(argv: Sequence[str]) -> Measurement:
    """The largest resident set, in MB (10^6 bytes), of a run of `argv` until it exits.

    Raises MeasurementError where it can't be started, takes more than an hour, or fails, with the last line that it wrote to its
    standard error.
    """
    if not hasattr(os, "wait4"):
        raise MeasurementError("peak memory needs os.wait4", got=sys.platform, remedy="measure on Linux or macOS")
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(_LIMIT), *argv]
    run = subprocess.run(launcher, capture_output=True, text=True, check=False, errors="replace")
    code, peak = json.loads(run.stdout) if run.stdout else (run.returncode, 0)
    if code == -signal.SIGALRM:
        raise MeasurementError(
            f"the process whose memory is measured must end within {_LIMIT} s", got="no end", remedy="choose a smaller batch"
        )
    if code != 0:
        raise MeasurementError(
            "the process whose memory is measured must exit with 0",
            got=f"{code} ({last_line(run.stderr)})",
            remedy=f"run it by hand: {shlex.join(argv)}",
        )
    return Measurement("memory_mb", peak * _UNIT / 1e6, "MB")


def last_line(written: str) -> str:
    """The last line that isn't blank of what a process wrote."""
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
