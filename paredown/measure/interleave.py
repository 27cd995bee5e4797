"""One round of paired timing: two callables in turn, A then B, then B then A, and so on. No scipy: a child process imports it.

Whatever slows the machine slows both sides of a pair, and neither side always goes first. The garbage collector is off.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LEAST_NS = 1_000_000  # one timing lasts at least 1 ms; what is quicker is repeated within it
_STAT = Path("/proc/stat")  # Linux's count of what all processors did


@dataclass(frozen=True)
class Round:
    """times: ms per call, (2, pairs), baseline and candidate. others: processor seconds that other processes took meanwhile, to
    some hundredths, so of a short round also below 0; 0 where this system doesn't count them. seconds: that it took.
    """

    times: NDArray[np.float64]
    others: float = 0.0
    seconds: float = 0.0


def interleaved(a: Callable[[], object], b: Callable[[], object], pairs: int, warmup: int) -> Round:
    """Times `a` (the baseline) and `b` (the candidate). warmup: calls of each before the timing starts, 3 at least."""
    sides, times = (a, b), np.empty((2, pairs))
    with _no_garbage_collection():
        began, others = time.monotonic(), _others()
        repeats = [_repeats(side, warmup) for side in sides]
        for pair in range(pairs):
            for side in (0, 1) if pair % 2 == 0 else (1, 0):
                times[side, pair] = _nanoseconds(sides[side], repeats[side]) / repeats[side] / 1e6
        others = _others() - others
    return Round(times, others, time.monotonic() - began)


def _repeats(side: Callable[[], object], warmup: int) -> int:
    """How many calls make one timing of at least a millisecond. Calls it `warmup` times, and at least 3."""
    quickest = min(_nanoseconds(side, 1) for _ in range(max(3, warmup)))
    return max(1, -(-_LEAST_NS // max(quickest, 1)))


def _nanoseconds(side: Callable[[], object], calls: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(calls):
        side()
    return max(1, time.perf_counter_ns() - start)


def _others() -> float:
    """Seconds of processor time that all other processes have taken, and that a hypervisor took away, since the machine started.

    The first line of /proc/stat: cpu user nice system idle iowait irq softirq steal ..., in ticks (man 5 proc).
    """
    try:
        ticks = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    busy = sum(ticks) - ticks[3] - ticks[4]
    mine = os.times()
    return busy / os.sysconf("SC_CLK_TCK") - mine.user - mine.system


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
