"""Paired latency of two files or callables: which is faster, and how sure that is, from rounds of interleaved timings.

A round opens both sides anew, where it can in a process of its own (deploy/stopwatch.py): where a session's memory and threads
come to lie, which physical cores a virtual machine is given, and what the machine does in that second, moves the ratio of small
models far more than the pairs of one round tell. The ratio is the median of the ratios of the pairs, with a two-sided bootstrap
interval over the rounds; a pair spoilt by another process is one value among many. While the interval is wide, or holds a limit
that the ratio is to be told from, more rounds follow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paredown.core.budget import Limit
from paredown.core.errors import MeasurementError
from paredown.core.measurement import Measurement
from paredown.measure.bootstrap import Vector, median_interval
from paredown.measure.interleave import Round

LEAST_PAIRS = 50
_WIDE = 0.06  # an interval of the ratio that reaches further from its middle, as a fraction of it, asks for more pairs
_ROUNDS = 6
_LEAST_SECONDS = 0.5
_TIMES = 4  # as many rounds at most
Timed = Callable[[int], Round]  # gives a round of so many pairs


@dataclass(frozen=True)
class PairedLatency:
    """a, b: medians in ms ("latency_ms"). ratio: median of b / a over the pairs ("latency_ratio"), below 1 where b is faster."""

    a: Measurement
    b: Measurement
    ratio: Measurement


def paired_latency(
    timed: Timed,
    *,
    pairs: int = LEAST_PAIRS,
    limit: Limit | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    device: str = "",
) -> PairedLatency:
    """The latency of a baseline and a candidate from rounds that `timed` gives.

    pairs: in all, over six rounds (rounded up); as many again, up to four times, while the interval of the ratio reaches further
    than 6 % to a side, or `limit` lies within it (an absolute limit: within that of b, in ms); its `n` says how many it took.
    Rounds that end when a limit is told are looked at several times, so what a verdict rests on is measured without.
    device: machine, runtime and threads, as text, for the record.
    Raises MeasurementError for fewer than 50 pairs: their interval would be too wide, and not to be trusted.
    """
    if pairs < LEAST_PAIRS:
        raise MeasurementError(f"pairs must be at least {LEAST_PAIRS}", got=pairs, remedy=f"write pairs={LEAST_PAIRS}")
    rounds = list[Round]()

    def measured(metric: str, values: Vector, unit: str) -> Measurement:
        low, high = median_interval(values, confidence, seed)
        return Measurement(metric, float(np.median(values)), unit, values.size, low, high, confidence, device, _load(rounds))

    found = None
    while found is None or (_is_open(found, limit) and len(rounds) < _TIMES * _ROUNDS):
        rounds += [timed(-(-pairs // _ROUNDS)) for _ in range(_ROUNDS)]
        a, b = np.stack([one.times for one in rounds], axis=1)  # each (rounds, pairs), ms
        found = PairedLatency(
            measured("latency_ms", a, "ms"), measured("latency_ms", b, "ms"), measured("latency_ratio", b / a, "x")
        )
    return found


def _load(rounds: list[Round]) -> float:
    """Cores that other processes kept busy; 0 for less than half a second in all, of which ticks of 10 ms tell nothing."""
    seconds = sum(one.seconds for one in rounds)
    return 0.0 if seconds < _LEAST_SECONDS else max(0.0, sum(one.others for one in rounds) / seconds)


def _is_open(found: PairedLatency, limit: Limit | None) -> bool:
    ratio = found.ratio
    wide = max(ratio.upper - ratio.value, ratio.value - ratio.lower) > _WIDE * ratio.value
    if limit is None:
        return wide
    held = ratio if limit.relative else found.b
    return wide or held.lower <= limit.value < held.upper
