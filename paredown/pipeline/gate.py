"""The ship gate: a stage stays only if its file, in the target's runtime, proves better within the allowed drop.

It stays if the upper bound of the drop (against the baseline, at the budget's confidence) is within `max_drop`, at least one
axis that the budget names got significantly better, and none got significantly worse, or only such as have room: an axis may
give back what it has to spare where the whole stays within its limit and the stage brings another nearer to one that was still
exceeded (int8 that costs a little time after a cut that saved more of it than was asked, say). Latency is significantly better
or worse where the interval of its paired ratio excludes 1; bytes are exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from paredown.core.artifact import Candidate
from paredown.core.budget import Axis, Budget
from paredown.core.measurement import Measurement


@dataclass(frozen=True)
class Verdict:
    """kept: whether the stage stays. reason: why, in words, with the numbers."""

    kept: bool
    reason: str


def judge(
    budget: Budget, baseline: Candidate, previous: Candidate, candidate: Candidate, latency_ratio: Measurement, size_ratio: float
) -> Verdict:
    """previous: the stage before it that was kept, or the baseline. latency_ratio, size_ratio: of the candidate against that."""
    limit, bound = budget.drop_limit(baseline.quality.value), candidate.drop.upper
    if bound > limit:
        found = f"{candidate.drop.value:.4g}, at most {bound:.4g} at {budget.confidence:.0%}"
        return Verdict(False, f"rolled back: the drop is {found}; allowed {limit:.4g}")
    moves = {axis: _move(axis, latency_ratio, size_ratio) for axis in budget.axes}
    words = ", ".join(_words(axis, move, latency_ratio, size_ratio) for axis, move in moves.items())
    better, worse = _moved(moves, "better"), _moved(moves, "worse")
    if not better:
        return Verdict(False, f"rolled back: nothing that the budget names got better ({words})")
    if worse:
        exceeded = worse & violations(budget, baseline, candidate).keys()
        if exceeded or not better & violations(budget, baseline, previous).keys():
            return Verdict(False, f"rolled back: {words}")
        words += f"; {' and '.join(sorted(worse))} still within the limit"
    return Verdict(True, f"kept: {words}; the drop is at most {bound:.4g} at {budget.confidence:.0%}, allowed {limit:.4g}")


def violations(budget: Budget, baseline: Candidate, candidate: Candidate) -> dict[str, float]:
    """The constraints that a candidate breaks, with how far each is exceeded, as a fraction of its limit.

    Each is held against the bad end of its interval: a budget is met when that is certain at the budget's confidence.
    """
    broken: dict[str, float] = {}
    limit = budget.drop_limit(baseline.quality.value)
    if candidate.drop.upper > limit:
        broken["drop"] = (candidate.drop.upper - limit) / max(limit, 1e-9)
    found = reached(budget, baseline, candidate)
    return broken | {axis: found[axis] / most - 1 for axis, most in allowed(budget, baseline).items() if found[axis] > most}


def allowed(budget: Budget, baseline: Candidate) -> dict[Axis, float]:
    """The limits that a budget names, as ratios to the baseline."""
    whole = {"latency": baseline.latency.value, "size": float(baseline.artifact.size_bytes)}
    return {axis: limit.ratio(whole[axis]) for axis in budget.axes if (limit := budget.limit(axis)) is not None}


def reached(budget: Budget, baseline: Candidate, candidate: Candidate) -> dict[Axis, float]:
    """The bad ends of what a candidate takes, as ratios to the baseline: where a latency is limited in ms, of its ms."""
    latency, limit = candidate.latency_ratio.upper, budget.limit("latency")
    if limit is not None and not limit.relative:
        latency = candidate.latency.upper / baseline.latency.value
    return {"latency": latency, "size": candidate.size_ratio}


def binding(budget: Budget, baseline: Candidate, candidate: Candidate) -> tuple[str, ...]:
    """What a candidate still breaks, in words."""
    lines = {
        "drop": f"drop: at most {candidate.drop.upper:.4g}, allowed {budget.drop_limit(baseline.quality.value):.4g}",
        "latency": f"latency: {candidate.latency_ratio}, {candidate.latency}; asked {budget.latency}",
        "size": f"size: {candidate.size_ratio:.3g}x, {candidate.artifact.size_bytes:,} B; asked {budget.size}",
    }
    return tuple(lines[axis] for axis in violations(budget, baseline, candidate))


def _move(axis: str, latency_ratio: Measurement, size_ratio: float) -> str:
    low, high = (latency_ratio.lower, latency_ratio.upper) if axis == "latency" else (size_ratio, size_ratio)
    return "better" if high < 1 else "worse" if low > 1 else "unchanged"


def _moved(moves: Mapping[Axis, str], move: str) -> set[str]:
    return {axis for axis, found in moves.items() if found == move}


def _words(axis: str, move: str, latency_ratio: Measurement, size_ratio: float) -> str:
    value = (
        f"{latency_ratio.value:.3g}x [{latency_ratio.lower:.3g}, {latency_ratio.upper:.3g}]"
        if axis == "latency"
        else f"{size_ratio:.3g}x"
    )
    return f"{axis} {move}: {value}"
