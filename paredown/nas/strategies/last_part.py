"""The last part of an effort, where an evaluator has several fidelities: the best so far are evaluated at the highest one, since
what trains fast isn't always what ends well.
"""

from collections.abc import Callable, Sequence

import numpy as np

from paredown.nas.problem import Problem, Proposal, Result, Vector
from paredown.nas.space import Architecture

_ROUNDING = 1e-9


class LastPart:
    """share: of the effort. ranked: what was proposed at the highest fidelity so far."""

    def __init__(self, problem: Problem, share: float) -> None:
        self.problem, self.share = problem, share if len(problem.fidelities) > 1 else 0.0
        self.ranked: set[Architecture] = set()

    def has_begun(self, known: Sequence[Result]) -> bool:
        """known: every result so far."""
        return self.share > 0 and self._spent(known) >= 1 - self.share - _ROUNDING

    def proposals(self, n: int, known: Sequence[Result], value: Callable[[Sequence[Result]], Vector]) -> list[Proposal]:
        """At most n: the best, by the value of results at the lowest fidelity, that still fit into what is left of the effort."""
        problem, ratio = self.problem, self.problem.fidelities[-1] / self.problem.fidelities[0]
        left = problem.effort.amount * (1 - self._spent(known)) * (1 + _ROUNDING) + _ROUNDING
        cheap, found = at_lowest(problem, known), list[Proposal]()
        for i in np.argsort(-value(cheap), kind="stable").tolist() if cheap else []:
            cost = 1.0 if problem.effort.unit == "evaluations" else cheap[i].seconds * ratio
            if len(found) < n and cheap[i].architecture not in self.ranked and cost <= left:
                self.ranked.add(cheap[i].architecture)
                found.append(Proposal(cheap[i].architecture, problem.fidelities[-1]))
                left -= cost
        return found

    def _spent(self, known: Sequence[Result]) -> float:
        effort = self.problem.effort
        spent = len(known) if effort.unit == "evaluations" else sum(result.seconds for result in known)
        return spent / effort.amount


def at_lowest(problem: Problem, known: Sequence[Result]) -> list[Result]:
    """Results at the lowest fidelity, without those that failed."""
    return [result for result in known if result.fidelity == problem.fidelities[0] and not result.failed]
