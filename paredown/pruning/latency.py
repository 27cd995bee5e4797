"""Widths under a cost that was measured group by group: an exact knapsack on an additive model, then a short repair.

    minimize  predicted loss = sum of the scores of what is removed
    s.t.      c * sum over units of what cutting that unit alone saves >= what must be saved
Savings don't quite add up: a layer between two groups that both get narrower is counted in both. c, 1 at first, is what the last
candidate really saved by what it was predicted to save; a candidate counts only for what it was measured to cost.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from paredown.core.errors import NothingToPruneError
from paredown.core.progress import Progress, silent
from paredown.graph.units import Units
from paredown.measure.latency_table import LatencyTable
from paredown.pruning.knapsack import knapsack
from paredown.pruning.select import Counts, Keep

Allowed = Sequence[Sequence[int]]  # for each unit the counts that it may keep, ascending
Column = NDArray[np.float64]  # one number per allowed count of a unit

TRIALS = 7
_POINTS = 3  # widths measured per unit: the least allowed and what divides the way to the whole


def measure_table(
    units: Units,
    allowed: Allowed,
    latency: Callable[[Sequence[Keep]], float],
    *,
    known: LatencyTable | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """The latency of the model with each unit alone at a few of its allowed counts.

    latency: of the model that keeps this of each unit, in ms. known: a table of the same model; none of it is measured again.
    """
    whole = [len(s) for s in units.scores]
    table = known or LatencyTable(latency(units.best(whole)))
    for name, size in zip(units.names, whole, strict=True):
        table = table.with_entry(name, size, table.base_ms)
    todo = [(u, count) for u, counts in enumerate(allowed) for count in _probes(counts, whole[u])]
    for done, (u, count) in enumerate(todo):
        progress("latency table", done / len(todo))
        if count not in table.entries.get(units.names[u], {}):
            ms = latency(units.best([*whole[:u], count, *whole[u + 1 :]]))
            table = table.with_entry(units.names[u], count, ms)
    return table


def losses(units: Units, allowed: Allowed) -> list[Column]:
    """For each unit and allowed count the sum of the scores of what is removed."""
    columns = []
    for scores, counts in zip(units.scores, allowed, strict=True):
        kept = np.concatenate([[0.0], np.cumsum(scores)])
        columns.append(kept[-1] - kept[list(counts)])
    return columns


def savings(units: Units, allowed: Allowed, table: LatencyTable) -> list[Column]:
    """For each unit and allowed count what the table says it saves from where the unit stands, as a share of base_ms."""
    return [
        np.array([table.at(name, len(scores)) - table.at(name, count) for count in counts]) / table.base_ms
        for name, scores, counts in zip(units.names, units.scores, allowed, strict=True)
    ]


def select_widths(
    loss: Sequence[Column],
    saving: Sequence[Column],
    allowed: Allowed,
    measure: Callable[[Counts], float],
    goal: float,
    *,
    start: float = 1.0,
    trials: int = TRIALS,
) -> Counts:
    """The counts of least predicted loss among the candidates tried whose measured cost is at most the goal.

    measure: the cost of a choice of counts, as a share of the original's. goal, start: likewise; what is asked, what it is now.
    Raises NothingToPruneError where no candidate is cheap enough, not even the one of the largest savings.
    """
    best: tuple[float, Counts] | None = None
    tried: dict[tuple[int, ...], float] = {}
    most = sum(float(column.max()) for column in saving)
    low, high, wanted = 0.0, most, start - goal  # of predicted savings: too little, enough
    for trial in range(trials):
        options = knapsack(loss, [-column for column in saving], -min(wanted, most) + 1e-9)
        counts = _counts(allowed, options or [int(column.argmax()) for column in saving])
        if tuple(counts) in tried:
            break
        cost = tried[tuple(counts)] = measure(counts)
        predicted = _total(saving, allowed, counts)
        if cost <= goal:
            total = _total(loss, allowed, counts)
            best = min(best or (math.inf, counts), (total, counts))
            high = min(high, wanted)
        elif wanted >= most:
            break
        else:
            low = max(low, wanted)
        correction = (start - cost) / predicted if predicted > 0 else 0.0
        proposal = (start - goal) / correction if correction > 0 else math.inf
        wanted = _next(low, high, proposal, last=trial == trials - 2 and best is None)
    if best is None:
        raise _unreachable(goal, min(tried.values()))
    return best[1]


def _next(low: float, high: float, proposal: float, *, last: bool) -> float:
    """The corrected proposal where it lies between what was too little and what was enough, else their middle."""
    if last:
        return high
    return proposal if low < proposal < high else (low + high) / 2


def _counts(allowed: Allowed, options: Sequence[int]) -> Counts:
    return [counts[option] for counts, option in zip(allowed, options, strict=True)]


def _total(columns: Sequence[Column], allowed: Allowed, counts: Counts) -> float:
    return sum(float(c[list(a).index(count)]) for c, a, count in zip(columns, allowed, counts, strict=True))


def _probes(counts: Sequence[int], whole: int) -> list[int]:
    """The least, and those nearest to the points that divide the way from there to the whole into equal parts."""
    smaller = [count for count in counts if count < whole]
    if not smaller:
        return []
    points = [smaller[0] + (whole - smaller[0]) * i / _POINTS for i in range(_POINTS)]
    return sorted({min(smaller, key=lambda count: abs(count - point)) for point in points})


def _unreachable(goal: float, least: float) -> NothingToPruneError:
    return NothingToPruneError(
        "the latency must be within reach of what may be removed",
        got=f"{goal:.3g}x asked, {least:.3g}x reachable",
        remedy="ask for less, lower floor or round_to, or protect less",
    )
