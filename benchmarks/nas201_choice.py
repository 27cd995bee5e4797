"""How the default strategy handles several objectives, chosen on VALIDATION columns alone, by seeds that no figure uses.

    python -m benchmarks.nas201_choice    every variant, 24 seeds from 10,000; 10 minutes; goes on where it was stopped

The score is the hypervolume of the found front, 200-epoch validation error of CIFAR-10 and latency, over that of the exact
front of the same validation columns, after 200 evaluations. `benchmarks/nas201.py` scores the chosen variant on test columns, by
seeds from 0; nothing here reads them.
"""

import functools
import math
import sys

import numpy as np
import torch

from benchmarks.nas201 import BUDGET, Column, capacity, exact_front, latency_table, values
from benchmarks.record import row, write
from paredown.core.measurement import Measurement
from paredown.nas.pareto import hypervolume, nondominated
from paredown.nas.problem import Objective, Problem
from paredown.nas.search import search
from paredown.nas.strategies.strategy import StrategyFactory
from paredown.nas.strategies.surrogate import Places, Surrogate

SEED = 10_000
_GOALS = (Objective("accuracy", maximize=True), Objective("latency_ms"))


class ByHypervolume(Surrogate):
    """Of each draw what adds most hypervolume to what was seen, instead of the best under random weights."""

    def _order(self, drawn: Column, outside: Column, seen: Column) -> Places:
        return by_improvement(drawn, outside, seen)


class InTurn(ByHypervolume):
    """Added hypervolume for three draws of four, for the fourth one objective alone, each in its turn: the ends of the front."""

    drawings = 0

    def _order(self, drawn: Column, outside: Column, seen: Column) -> Places:
        self.drawings += 1
        if self.drawings % 4:
            return super()._order(drawn, outside, seen)
        return np.lexsort((drawn[:, self.drawings // 4 % drawn.shape[1]], outside))


def by_improvement(drawn: Column, outside: Column, seen: Column) -> Places:
    """The drawn front, what adds most hypervolume to the seen points first (Bradford et al., TSEMO, 2018); then the rest.

    drawn (pool, objectives); seen (n, objectives): the results within the limits. What is outside a limit comes last.
    """
    feasible = np.flatnonzero(outside <= outside.min())
    front = feasible[nondominated(drawn[feasible])]
    ends = np.concatenate([drawn[front], seen[nondominated(seen)]])
    reference = (ends.max(0) + 0.1 * np.ptp(ends, axis=0)).tolist()
    gain = [hypervolume(np.concatenate([seen, drawn[[i]]]), reference) for i in front]
    rest = np.lexsort((drawn.sum(1), outside))
    return np.concatenate([front[np.argsort(-np.array(gain), kind="stable")], rest])


def variants() -> dict[str, StrategyFactory]:
    """The default is the second, with a start of 8 uniform ones."""
    kinds = {"added hypervolume": ByHypervolume, "random weights": Surrogate, "ends in turn": InTurn}
    found: dict[str, StrategyFactory] = {}
    for kind, made in kinds.items():
        for start in (8, 16):
            for large in (True, False):
                name = f"{kind}, start {start}, {'large ones first' if large else 'uniform start'}"
                found[name] = functools.partial(_made, made, start, large)
    return found


def _made(kind: type[Surrogate], start: int, large: bool, problem: Problem) -> Surrogate:
    """large: the start is the larger half of twice as many, and log-costs are features, as with one objective."""
    strategy = kind(problem, start=start)
    strategy.capacity = capacity if large else None
    return strategy


def validation_hypervolume(strategy: StrategyFactory, seed: int) -> float:
    cells = latency_table()
    found = search(cells.space, cells, strategy=strategy, effort=BUDGET, objectives=_GOALS, seed=seed)
    chosen = np.array([(100 - each.validation["accuracy"], each.validation["latency_ms"]) for each in found.front])
    exact, reference = exact_front("validation")
    return hypervolume(chosen, reference) / hypervolume(exact, reference)


def main(seeds: int = 24) -> None:
    torch.set_num_threads(1)
    rows = []
    for name, strategy in variants().items():
        case = f"choice, {name}|validation hypervolume"
        found = values(case, lambda i, made=strategy: validation_hypervolume(made, SEED + i), seeds)[:, 0]
        mean, spread = float(found.mean()), float(found.std(ddof=1))
        half = 1.96 * spread / math.sqrt(seeds)
        measured = Measurement("validation hypervolume", mean, "", seeds, mean - half, mean + half)
        rows.append(row(name, measured, standard_deviation=round(spread, 5), source="table"))
        print(f"{name:45s} {mean:.4f} +- {spread:.4f}", flush=True)
    print(write("nas201_choice.csv", rows))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
