"""The multiple that widths are rounded to, from measured latencies of one layer at a few widths.

Kernels work on blocks of channels: one channel more than a whole number of blocks costs a block. A multiple m pays where an odd
multiple of it is really cheaper than the next multiple of 2m; with latency t(w) and a layer's cost in proportion to its width,
    gain(w, m) = (t(w + m) - t(w)) / (t(w + m) m / (w + m))       1: all of the proportional saving, 0: none of it
"""

from collections.abc import Callable, Mapping

import numpy as np

from paredown.core.errors import RecipeError

MULTIPLES = (16, 8, 4, 2, 1)
PROBES = (64, 96, 128)  # multiples of twice the largest
_PAYS = 0.5  # of the proportional saving

WidthLatency = Callable[[int], float] | Mapping[int, float]


def widths_to_measure() -> tuple[int, ...]:
    """The widths, ascending, whose latency `preferred_multiple` looks at."""
    return tuple(sorted({*PROBES, *(width - m for width in PROBES for m in MULTIPLES)}))


def preferred_multiple(latency: WidthLatency) -> int:
    """The smallest of 16, 8, 4, 2, 1 that pays, as every larger one does; 32 where none does.

    latency: ms of a layer of so many channels, in the target's runtime: a function, or a table of `widths_to_measure()`.
    Raises RecipeError where the table lacks one of these widths.
    """
    time = {width: _at(latency, width) for width in widths_to_measure()}
    best = 2 * MULTIPLES[0]
    for m in MULTIPLES:
        if _gain(time, m) < _PAYS:
            return best
        best = m
    return best


def _gain(time: Mapping[int, float], m: int) -> float:
    """The median over the probes: one measurement that another process spoilt doesn't decide."""
    return float(np.median([(time[w] - time[w - m]) / (time[w] * m / w) for w in PROBES]))


def _at(latency: WidthLatency, width: int) -> float:
    if callable(latency):
        return latency(width)
    if width not in latency:
        raise RecipeError(
            "a table of latencies must hold the widths that are compared",
            got=f"no width {width}",
            remedy="measure every width of widths_to_measure()",
        )
    return latency[width]
