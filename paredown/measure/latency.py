"""Paired, interleaved timing of two callables: which is faster, and how sure that is.

A then B, then B then A, and so on: whatever slows the machine slows both sides of a pair, and neither side always goes
first. That is done in rounds, each with both sides opened anew: where a session's memory and threads come to lie, and what the
machine is doing in that second, moves the ratio of small models more than the pairs of one round tell. The ratio is the median
of the ratios of the pairs, with a two-sided bootstrap interval over the rounds; a pair spoilt by another process is one value
among many. While the interval is wide, more rounds follow. The garbage collector is off while timing.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from paredown.core.errors import MeasurementError
from paredown.core.measurement import Measurement
from paredown.measure.bootstrap import Vector, median_interval

LEAST_PAIRS = 50
_LEAST_NS = 1_000_000  # one timing lasts at least 1 ms; what is quicker is repeated within it
_WIDE = 0.06  # an interval of the ratio that reaches further from its middle, as a fraction of it, asks for more pairs
_ROUNDS = 6
_TIMES = 4  # as many rounds at most
Open = Callable[[], Callable[[], object]]  # gives what is timed: a file, loaded afresh


@dataclass(frozen=True)
class PairedLatency:
    """a, b: medians in ms ("latency_ms"). ratio: median of b / a over the pairs ("latency_ratio"), below 1 where b is faster."""

    a: Measurement
    b: Measurement
    ratio: Measurement


def paired_latency(
    a: Open, b: Open, *, pairs: int = LEAST_PAIRS, warmup: int = 5, confidence: float = 0.95, seed: int = 0, device: str = "",
) -> PairedLatency:  # fmt: skip
    """Times what `a` (the baseline) and `b` (the candidate) open, in turn.

    pairs: in all, over six rounds (rounded up); as many again, up to four times, while the interval of the ratio reaches further
    than 6 % to a side; its `n` says how many it took. warmup: calls of each before the timing of a round starts, 3 at least.
    device: machine, runtime and threads, as text, for the record.
    Raises MeasurementError for fewer than 50 pairs: their interval would be too wide, and not to be trusted.
    """
    if pairs < LEAST_PAIRS:
        raise MeasurementError(f"pairs must be at least {LEAST_PAIRS}", got=pairs, remedy=f"write pairs={LEAST_PAIRS}")

    def measured(metric: str, values: Vector, unit: str) -> Measurement:
        low, high = median_interval(values, confidence, seed)
        return Measurement(metric, float(np.median(values)), unit, values.size, low, high, confidence, device)

    times, ratio = np.empty((2, 0, -(-pairs // _ROUNDS))), None  # (2, rounds, pairs), ms
    while ratio is None or (_is_wide(ratio) and times.shape[1] < _TIMES * _ROUNDS):
        rounds = [_interleaved((a(), b()), times.shape[2], warmup) for _ in range(_ROUNDS)]
        times = np.concatenate([times, np.stack(rounds, axis=1)], axis=1)
        ratio = measured("latency_ratio", times[1] / times[0], "x")
    return PairedLatency(measured("latency_ms", times[0], "ms"), measured("latency_ms", times[1], "ms"), ratio)


def _is_wide(ratio: Measurement) -> bool:
    return max(ratio.upper - ratio.value, ratio.value - ratio.lower) > _WIDE * ratio.value


def _interleaved(sides: tuple[Callable[[], object], Callable[[], object]], pairs: int, warmup: int) -> Vector:
    """Milliseconds per call, (2, pairs)."""
    times = np.empty((2, pairs))
    with _no_garbage_collection():
        repeats = [_repeats(side, warmup) for side in sides]
        for pair in range(pairs):
            for side in (0, 1) if pair % 2 == 0 else (1, 0):
                times[side, pair] = _nanoseconds(sides[side], repeats[side]) / repeats[side] / 1e6
    return times


def _repeats(side: Callable[[], object], warmup: int) -> int:
    """How many calls make one timing of at least a millisecond. Calls it `warmup` times, and at least 3."""
    quickest = min(_nanoseconds(side, 1) for _ in range(max(3, warmup)))
    return max(1, -(-_LEAST_NS // max(quickest, 1)))


def _nanoseconds(side: Callable[[], object], calls: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(calls):
        side()
    return max(1, time.perf_counter_ns() - start)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
