"""How the default strategy handles several objectives, and what is chosen in the end, by VALIDATION columns of CIFAR-10 alone and
by seeds that no figure uses.

    python -m benchmarks.nas201_choice    every variant, 24 seeds from 10,000; 20 minutes; goes on where it was stopped

Several objectives: the score is the hypervolume of the found front, 200-epoch validation error and latency, over that of the
exact front of the same validation columns, after 200 evaluations.
The final choice: the search sees the validation accuracy of the table's first training of each cell, under a limit of parameters;
the score is the mean validation accuracy of its other trainings, which nothing was chosen by.
`benchmarks/nas201.py` scores what was chosen here on test columns, by seeds from 0; nothing here reads them.
"""

import functools
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.nas201 import BUDGET, Column, columns, exact_front, latency_table, summary, values
from benchmarks.record import write
from paredown.nas import cell201
from paredown.nas.evaluators.table import Table, cell201_table
from paredown.nas.pareto import hypervolume, nondominated
from paredown.nas.problem import Limit, Objective, Problem
from paredown.nas.search import search
from paredown.nas.strategies.strategy import StrategyFactory
from paredown.nas.strategies.surrogate import Places, Surrogate

SEED = 10_000
_GOALS = (Objective("accuracy", maximize=True), Objective("latency_ms"))
_SHARES = (0.2, 0.3, 0.4, 0.5)  # limits of parameters over the largest cell's


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
    """literal: cells that the space calls the same have features of their own too, since their latencies differ."""
    kinds = {"random weights": Surrogate, "added hypervolume": ByHypervolume, "ends in turn": InTurn}
    found: dict[str, StrategyFactory] = {}
    for kind, made in kinds.items():
        for literal in (True, False):
            for start in (8, 16):
                name = f"{kind}, start {start}, {'literal' if literal else 'canonical'} features"
                found[name] = functools.partial(_made, made, start, literal)
    return found


def _made(kind: type[Surrogate], start: int, literal: bool, problem: Problem) -> Surrogate:
    strategy = kind(problem, start=start)
    strategy.literal = literal
    return strategy


@functools.cache
def first_training(noisy: bool) -> Table:
    """What one training of each cell gave; its test column is what the others gave, on the same validation images."""
    core = columns()
    operators = np.stack([core[name] for name in cell201.NAMES], axis=1)
    others = np.stack([core["c10_valid_e200_s888"], core["c10_valid_e200_s999"]])
    metrics = {1.0: {"accuracy": core["c10_valid_e200_s777"], "params": core["c10_params"]}}
    tests = {"held out": np.nanmean(others, axis=0)}
    seconds = {1.0: 200 * core["c10_sec_per_epoch"].astype(np.float64)}
    table = cell201_table(operators, metrics, seconds, tests, "NAS-Bench-201 c10, first training")
    return table.sampled("accuracy", 25_000) if noisy else table


def held_out(noisy: bool, seed: int) -> list[float]:
    """Mean validation accuracy in percent of the other trainings of what was chosen, under each limit of parameters."""
    cells, found = first_training(noisy), []
    for share in _SHARES:
        limits = (Limit("params", high=share * float(cells.columns[1.0]["params"].max())),)
        found.append(search(cells.space, cells, effort=BUDGET, limits=limits, seed=seed).best.test["held out"])
    return found


def validation_hypervolume(strategy: StrategyFactory, seed: int) -> float:
    cells = latency_table()
    found = search(cells.space, cells, strategy=strategy, effort=BUDGET, objectives=_GOALS, seed=seed)
    chosen = np.array([(100 - each.validation["accuracy"], each.validation["latency_ms"]) for each in found.front])
    exact, reference = exact_front("validation")
    return hypervolume(chosen, reference) / hypervolume(exact, reference)


def main(seeds: int = 24) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, strategy in variants().items():
        case = f"several objectives, {name}|validation hypervolume"
        found = values(case, lambda i, made=strategy: validation_hypervolume(made, SEED + i), seeds)
        rows += summary(case, found)
    for noisy in (False, True):
        metrics = ",".join(f"held-out accuracy at {share}x" for share in _SHARES)
        case = f"final choice, by {'what is expected' if noisy else 'the measured value'}|{metrics}"
        rows += summary(case, values(case, lambda i, noisy=noisy: held_out(noisy, SEED + i), seeds))
    print(write("nas201_choice.csv", rows))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
