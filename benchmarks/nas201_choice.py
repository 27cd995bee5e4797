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
from paredown.nas.pareto import hypervolume
from paredown.nas.problem import Objective
from paredown.nas.scores import chebyshev, random_weights
from paredown.nas.search import search
from paredown.nas.strategies.strategy import StrategyFactory
from paredown.nas.strategies.surrogate import Places, Surrogate

SEED = 10_000
_GOALS = (Objective("accuracy", maximize=True), Objective("latency_ms"))


class ByWeights(Surrogate):
    """Of each draw the best under random weights (ParEGO's scalarization instead of added hypervolume)."""

    def _order(self, drawn: Column, outside: Column, seen: Column) -> Places:  # noqa: ARG002 (the interface's)
        weights = random_weights(self.memory.problem, self.memory.random)
        return np.lexsort((-chebyshev(drawn, weights), outside))


class InTurn(Surrogate):
    """Added hypervolume for three draws of four, for the fourth one objective alone, each in its turn: the ends of the front."""

    drawings = 0

    def _order(self, drawn: Column, outside: Column, seen: Column) -> Places:
        self.drawings += 1
        if self.drawings % 4:
            return super()._order(drawn, outside, seen)
        return np.lexsort((drawn[:, self.drawings // 4 % drawn.shape[1]], outside))


def variants() -> dict[str, StrategyFactory]:
    found: dict[str, StrategyFactory] = {}
    for kind in (Surrogate, ByWeights, InTurn):
        for start in (8, 16):
            for large in (True, False):
                name = f"{kind.__name__}, start {start}, {'large ones first' if large else 'uniform start'}"
                found[name] = functools.partial(kind, start=start, capacity=capacity if large else None)
    return found


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
