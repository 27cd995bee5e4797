"""How a module of ours runs in a process of its own: with this process's paths, and not longer than the one that started it.

`python -m` would look into the current folder first, and a user's numpy.py or queue.py there would be taken for the real one.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

_ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1  # man 2 prctl


def command(module: str) -> list[str]:
    """What starts `module` as a program; its arguments follow."""
    current = {"", str(Path.cwd())} - {str(_ROOT)}
    paths = [path for path in sys.path if path not in current]
    paths += [] if str(_ROOT) in paths else [str(_ROOT)]
    start = f"import sys; sys.path[:] = {paths!r}; import runpy; runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-c", start]


def end_with(parent: int) -> None:
    """From now on this process is killed when its parent ends, however that ends. Linux alone offers it; elsewhere: nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)


@contextlib.contextmanager
def answers() -> Iterator[TextIO]:
    """Standard output, for what the parent reads alone: whatever libraries print goes to standard error meanwhile."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as alone:
        os.dup2(2, 1)
        try:
            yield alone
        finally:
            sys.stdout.flush()
            os.dup2(alone.fileno(), 1)


def tail(written: BinaryIO) -> str:
    """The last 4 kB of what a process wrote to a file."""
    written.seek(max(0, written.seek(0, os.SEEK_END) - 4096))
    return written.read().decode(errors="replace")
