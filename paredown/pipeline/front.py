"""The Pareto front of candidates in drop, latency and size, and the choice of one of them."""

from collections.abc import Sequence

from paredown.core.artifact import Candidate
from paredown.core.budget import Budget
from paredown.pipeline.gate import violations


def pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that no other is at least as good as everywhere and better somewhere; fastest first. Duplicates once."""
    points = {candidate.artifact.digest: candidate for candidate in candidates}
    unique = list(points.values())
    front = [one for one in unique if not any(_dominates(other, one) for other in unique)]
    return tuple(sorted(front, key=lambda candidate: candidate.latency_ratio.value))


def choose(budget: Budget, baseline: Candidate, candidates: Sequence[Candidate]) -> Candidate:
    """Within the budget: the one with the smallest bound on its drop. Else the one that exceeds it least, all limits together."""

    def key(candidate: Candidate) -> tuple[float, float]:
        return sum(violations(budget, baseline, candidate).values()), candidate.drop.upper

    return min(candidates, key=key)


def _axes(candidate: Candidate) -> tuple[float, float, float]:
    return candidate.drop.value, candidate.latency_ratio.value, candidate.size_ratio


def _dominates(one: Candidate, other: Candidate) -> bool:
    a, b = _axes(one), _axes(other)
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
