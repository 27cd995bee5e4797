"""The default: a Bayesian ridge surrogate, Thompson sampling, and a last part of the effort at full fidelity.

Every metric that an objective or a limit names gets a regression on encoding, pairs and log-cost (`features`, `ridge`). For each
proposal one function a metric is drawn from the posterior, and the architecture that is best under them is proposed
(Thompson 1933; several objectives under random weights, as ParEGO does). It begins with architectures of high capacity, where
`capacity` (parameters or MACs, known without an evaluation) is given. Where the evaluator knows two fidelities or more,
the last `rerank` of the effort goes into evaluating the best at the highest one: what trains fast isn't always what ends well.
"""

from collections.abc import Sequence

import numpy as np

from paredown.core.errors import SearchError
from paredown.nas.problem import Problem, Proposal, Result, Vector
from paredown.nas.scores import random_weights, scores
from paredown.nas.space import Architecture
from paredown.nas.strategies.features import ENUMERATED, Capacity, Matrix, enumerated, features
from paredown.nas.strategies.memory import Memory, at_least, dump, restore
from paredown.nas.strategies.ridge import Ridge, Scale
from paredown.nas.strategies.strategy import State

_POOL, _NEAR = 2000, 10
_PAIRS = 0.5


class Surrogate:
    """start: architectures before the first fit. batch: proposals of one fit."""

    def __init__(
        self, problem: Problem, *, capacity: Capacity | None = None, start: int = 16, batch: int = 4, rerank: float = 1 / 3,
        smooth: float = 0.5, explore: float = 1.0, pairs: float = _PAIRS, warm: float = 2.0
    ) -> None:  # fmt: skip
        if not 0 <= rerank < 1:
            raise SearchError("rerank is a share of the effort in [0, 1)", got=rerank, remedy="write rerank=0.33")
        self.memory = Memory(problem)
        self.capacity, self.start, self.batch = capacity, at_least("start", start, 2), at_least("batch", batch, 1)
        self.rerank = rerank if len(problem.fidelities) > 1 else 0.0
        self.known: list[Result] = []
        self.queue: list[Architecture] = []
        self.ranked: set[Architecture] = set()
        self.smooth, self.explore, self.pairs, self.warm = smooth, explore, pairs, warm

    def ask(self, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        for _ in range(n):
            proposals += self._full() if self._ends() else self._cheap()
        return proposals

    def _cheap(self) -> list[Proposal]:
        if not self.queue:
            self.queue = self._first() if len(self._at(0)) < self.start else self._fitted()
        draw = iter(self.queue)
        proposal = self.memory.propose(1, lambda: next(draw, None) or self.memory.uniform())
        self.queue = list(draw)
        return proposal

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)
        self.known += results

    def _at(self, fidelity: int) -> list[Result]:
        wanted = self.memory.problem.fidelities[fidelity]
        return [result for result in self.known if result.fidelity == wanted and not result.failed]

    def _first(self) -> list[Architecture]:
        """Random ones; where capacity is known, the largest of a few times as many."""
        count = self.start if self.capacity is None else round(self.warm * self.start)
        drawn = [self.memory.uniform() for _ in range(count)]
        if self.capacity is not None:
            drawn.sort(key=self.capacity, reverse=True)
        return drawn[: self.start]

    def _fitted(self) -> list[Architecture]:
        """A batch of proposals, one drawn function each."""
        problem, seen, known = self.memory.problem, self.memory.seen, self._at(0)
        pool, rows = self._pool(known)
        ridge = Ridge(features(problem.space, [r.architecture for r in known], self.capacity, self.pairs))
        objectives = problem.costs(known).T
        scales = [Scale.of(column) for column in objectives]
        targets = [scale.forward(column) for scale, column in zip(scales, objectives, strict=True)]
        limits = [np.array([limit.violation(r.metrics) for r in known]) for limit in problem.limits]
        drawn = ridge.samples(rows, targets, self.batch, self.memory.random)
        chosen: list[Architecture] = []
        del limits
        for i in range(self.batch):
            weights = random_weights(problem, self.memory.random)
            value = sum(w * d[:, i] for w, d in zip(weights, drawn, strict=True))
            for place in np.argsort(value):
                if problem.space.canonicalize(pool[place]) not in seen and pool[place] not in chosen:
                    chosen.append(pool[place])
                    break
        return chosen

    def _pool(self, known: Sequence[Result]) -> tuple[list[Architecture], Matrix]:
        space = self.memory.problem.space
        if space.size <= ENUMERATED:
            return enumerated(space.to_json(), self.capacity, self.pairs)
        pool = [self.memory.uniform() for _ in range(_POOL)]
        return pool, features(space, pool, self.capacity, self.pairs)

    def _ends(self) -> bool:
        if self.rerank == 0:
            return False
        return self._spent() >= 1 - self.rerank

    def _spent(self) -> float:
        effort = self.memory.problem.effort
        spent = len(self.known) if effort.unit == "evaluations" else sum(r.seconds for r in self.known)
        return spent / effort.amount

    def _full(self) -> list[Proposal]:
        """The best that wasn't trained in full yet."""
        problem, known = self.memory.problem, self._at(0)
        y = -problem.costs(known)[:, 0]
        scale = Scale.of(y)
        t = scale.forward(y)
        X = features(problem.space, [r.architecture for r in known], self.capacity, self.pairs)
        mean = Ridge(X).mean(X, t)
        value = (1 - self.smooth) * t + self.smooth * mean
        rest = 1 - self._spent()
        ratio = problem.fidelities[-1] / problem.fidelities[0]
        for i in np.argsort(-value):
            r = known[i]
            if r.architecture in self.ranked:
                continue
            if r.seconds * ratio / problem.effort.amount > rest:
                continue
            self.ranked.add(r.architecture)
            return [Proposal(r.architecture, problem.fidelities[-1])]
        return []
