"""The default: a Bayesian ridge surrogate, Thompson sampling, and a last part of the effort at full fidelity.

Every metric that an objective or a limit names gets a regression on encoding, pairs and log-cost (`features`, `ridge`). For each
proposal one function a metric is drawn from the posterior, and the architecture that is best under them is proposed
(Thompson 1933; of several objectives under random weights, Knowles 2006). It begins with architectures of high capacity, where
the evaluator knows it (`Sized`), or `capacity` is given. Where the evaluator knows two fidelities or more,
the last `rerank` of the effort goes into evaluating the best at the highest one: what trains fast isn't always what ends well.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.core.errors import SearchError
from paredown.nas.problem import Capacity, Limit, Problem, Proposal, Result, Vector
from paredown.nas.scores import chebyshev, random_weights, scores
from paredown.nas.space import Architecture
from paredown.nas.strategies.features import ENUMERATED, Matrix, enumerated, features
from paredown.nas.strategies.last_part import LastPart, at_lowest
from paredown.nas.strategies.memory import Memory, at_least, dump, restore
from paredown.nas.strategies.ridge import Ridge, Scale
from paredown.nas.strategies.strategy import State

_POOL, _NEAR = 2000, 10  # of a large space: random candidates, and how many of the best give their neighbors
_SMOOTH = 0.25  # weight of the regression beside the measured value when the best are picked for full fidelity
Places: TypeAlias = NDArray[np.int64]


class Surrogate:
    """start: architectures before the first fit; None: 16, or 8 with several objectives. batch: proposals of one fit.

    capacity: None: the evaluator's, if it knows one. Used with one objective only; the settings for one were tuned on
    NAS-Bench-201's validation accuracy on CIFAR-10. With several each draw is scalarized by random weights, 8 uniform ones come
    first, and no capacity is looked at: of 12 variants this had the largest validation hypervolume (CIFAR-10 error and latency,
    200 evaluations, 24 seeds from 10,000, which no figure uses; test columns were not read): benchmarks/nas201_choice.py,
    benchmarks/results/nas201_choice.csv. Where costs count, architectures that the space calls the same have features of their
    own too (`features`, literal).
    """

    def __init__(
        self,
        problem: Problem,
        *,
        capacity: Capacity | None = None,
        start: int | None = None,
        batch: int = 4,
        rerank: float = 1 / 3,
    ) -> None:
        if not 0 <= rerank < 1:
            raise SearchError("rerank is a share of the effort in [0, 1)", got=rerank, remedy="write rerank=0.33")
        if capacity is not None and not callable(capacity):
            raise SearchError("capacity is a function of an architecture", got=repr(capacity), remedy="leave it out")
        self.memory = Memory(problem)
        alone = len(problem.objectives) == 1
        known = problem.capacity if capacity is None else capacity
        self.capacity, self.batch = known if alone else None, at_least("batch", batch, 1)
        costs = len(problem.objectives) + len(problem.limits) > 1
        self.literal = costs and bool(problem.space.symmetries)
        self.start = at_least("start", (16 if alone else 8) if start is None else start, 2)
        self.last = LastPart(problem, rerank)
        self.known: list[Result] = []
        self.queue: list[Architecture] = []

    def ask(self, n: int) -> list[Proposal]:
        if self.last.has_begun(self.known):
            full = self.last.proposals(n, self.known, self._value)
            if full or self.last.ranked:
                return full  # where not one full evaluation fits into what is left, cheap ones to the end
        return [proposal for _ in range(n) for proposal in self._cheap()]

    def tell(self, results: Sequence[Result]) -> None:
        self.memory.note(results)
        self.known += results

    def _cheap(self) -> list[Proposal]:
        if not self.queue:
            self.queue = self._first() if len(self._good()) < self.start else self._drawn()
        return self.memory.propose(1, lambda: self.queue.pop(0) if self.queue else self.memory.uniform())

    def _good(self) -> list[Result]:
        """Results at the lowest fidelity."""
        return at_lowest(self.memory.problem, self.known)

    def _first(self) -> list[Architecture]:
        """Random ones; where the capacity is known, the larger half of twice as many."""
        drawn = [self.memory.uniform() for _ in range(self.start if self.capacity is None else 2 * self.start)]
        if self.capacity is not None:
            drawn.sort(key=self.capacity, reverse=True)
        return drawn[: self.start]

    def _drawn(self) -> list[Architecture]:
        """A batch of new architectures, each the best under functions drawn from the posterior."""
        problem, random, known = self.memory.problem, self.memory.random, self._good()
        pool, rows = self._pool(known)
        ridge = Ridge(self._features(known))
        columns = [*problem.costs(known).T, *(np.array([r.metrics[limit.metric] for r in known]) for limit in problem.limits)]
        scales = [Scale.of(column) for column in columns]
        targets = [scale.forward(column) for scale, column in zip(scales, columns, strict=True)]
        samples = ridge.samples(rows, targets, self.batch, random)
        count = len(problem.objectives)
        chosen: list[Architecture] = []
        for i in range(self.batch):
            drawn = np.stack([sample[:, i] for sample in samples], axis=1).astype(np.float64)  # (pool, objectives + limits)
            outside = np.zeros(len(pool))
            for column, scale, limit in zip(drawn[:, count:].T, scales[count:], problem.limits, strict=True):
                outside += _outside(column, scale, limit)
            seen = np.stack(targets[:count], axis=1)[problem.violations(known) <= 0]
            chosen += self._first_new(pool, self._order(drawn[:, :count], outside, seen), chosen)
        return chosen

    def _order(self, drawn: NDArray[np.float64], outside: Vector, _seen: NDArray[np.float64]) -> Places:
        """The pool, most wanted first. drawn (pool, objectives): costs; _seen (n, objectives): of results, for variants."""
        if drawn.shape[1] == 1:
            return np.lexsort((drawn[:, 0], outside))
        weights = random_weights(self.memory.problem, self.memory.random)
        return np.lexsort((-chebyshev(drawn, weights), outside))

    def _first_new(self, pool: Sequence[Architecture], order: Places, chosen: Sequence[Architecture]) -> list[Architecture]:
        for place in order.tolist():
            if pool[place] not in chosen and self.memory.problem.space.canonicalize(pool[place]) not in self.memory.seen:
                return [pool[place]]
        return []

    def _pool(self, known: Sequence[Result]) -> tuple[Sequence[Architecture], Matrix]:
        """Candidates and their features: a small space whole; of a large one random ones and neighbors of the best."""
        space = self.memory.problem.space
        if space.size <= ENUMERATED:
            return enumerated(space.to_json(), self.capacity, self.literal)
        best = np.argsort(-scores(self.memory.problem, known), kind="stable")[:_NEAR]
        pool = [near for i in best.tolist() for near in space.neighbors(known[i].architecture)]
        pool += [self.memory.uniform() for _ in range(_POOL)]
        return pool, features(space, pool, self.capacity, literal=self.literal)

    def _features(self, results: Sequence[Result]) -> Matrix:
        architectures = [result.architecture for result in results]
        return features(self.memory.problem.space, architectures, self.capacity, literal=self.literal)

    def _value(self, known: Sequence[Result]) -> Vector:
        """(n,): scores, with one objective drawn a little towards the regression, since a short training is noisy."""
        problem = self.memory.problem
        value = scores(problem, known)
        if len(problem.objectives) > 1 or problem.limits or len(known) < self.start:
            return value
        target = Scale.of(value).forward(value)
        ridge = Ridge(self._features(known))
        return (1 - _SMOOTH) * target + _SMOOTH * ridge.mean(ridge.rows, target)

    def state_dict(self) -> State:
        return {
            "memory": self.memory.state_dict(),
            "known": dump(self.known),
            "queue": [list(architecture) for architecture in self.queue],
            "ranked": sorted(map(list, self.last.ranked)),
        }

    def load_state_dict(self, state: State) -> None:
        self.memory.load_state_dict(state["memory"])
        self.known = restore(state["known"])
        self.queue = [tuple(architecture) for architecture in state["queue"]]
        self.last.ranked = {tuple(architecture) for architecture in state["ranked"]}


def _outside(drawn: Vector, scale: Scale, limit: Limit) -> Vector:
    """(pool,): how far a drawn metric is outside a limit, in the metric's own scale; 0 inside."""
    over = np.zeros(len(drawn)) if limit.high is None else np.maximum(drawn - scale.forward(np.array(limit.high)), 0)
    under = np.zeros(len(drawn)) if limit.low is None else np.maximum(scale.forward(np.array(limit.low)) - drawn, 0)
    found: Vector = over + under
    return found
