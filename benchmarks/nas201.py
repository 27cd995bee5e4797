"""NAS-Bench-201: the official replay of six strategies, and what the default finds under two objectives and under limits.

    python -m benchmarks.nas201            all, 200 seeds, about 20 minutes of one core; goes on where it was stopped
    python -m benchmarks.nas201 20         20 seeds
    python -m benchmarks.nas201 20 ptq     the cases of that name alone, which write no table

Replay: the 12-epoch validation accuracy is all that a strategy sees, simulated training seconds are its budget, the 200-epoch
test accuracy of what it chooses is the figure. The default may spend a part of the same seconds on 200-epoch validation. Its
settings were tuned on CIFAR-10's validation accuracy; how it handles several objectives was chosen by validation hypervolumes,
with other seeds than these (`benchmarks/nas201_choice.py`). Nothing here is trained: every number comes from the table.

The other cases see the 200-epoch validation accuracy and its standard error (that of a proportion of 25,000, 5,000 and 3,000
validation images), 200 evaluations:
front     CIFAR-10 error and latency on a Xeon Gold 6226; hypervolume of the chosen cells' test errors over that of the exact
          test front
smaller   the best expected accuracy within 0.40x / 0.30x / 0.26x of the parameters of the cell of 3x3 convolutions alone
ptq       the cell and its bits together: accuracy after quantization under a size that only int8 keeps for most cells
"""

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import row, write
from paredown.core.measurement import Measurement
from paredown.nas import cell201
from paredown.nas.composite import product, split
from paredown.nas.dimensions import Ordinal
from paredown.nas.evaluators.evaluator import Job, Outcome
from paredown.nas.evaluators.table import Table, cell201_table
from paredown.nas.pareto import hypervolume
from paredown.nas.problem import Limit, Objective, Source
from paredown.nas.search import search
from paredown.nas.space import Space
from paredown.nas.strategies.local_search import LocalSearch
from paredown.nas.strategies.nsga2 import NSGA2
from paredown.nas.strategies.ppo import PPO
from paredown.nas.strategies.random import Random
from paredown.nas.strategies.regularized_evolution import RegularizedEvolution
from paredown.nas.strategies.reinforce import Reinforce
from paredown.nas.strategies.strategy import StrategyFactory
from paredown.nas.strategies.surrogate import Surrogate

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
_DONE = pathlib.Path("runs/bench/nas201.jsonl")
_SETS = {"c10": ("CIFAR-10", 20_000), "c100": ("CIFAR-100", 40_000), "in16": ("ImageNet16-120", 120_000)}
_LOW, _FULL = 12 / 200, 1.0
BUDGET = 200
_SMALLER = {"c10": 0.40, "c100": 0.30, "in16": 0.26}
_SAMPLES = {"c10": 25_000, "c100": 5_000, "in16": 3_000}  # validation images: how sure an accuracy is
_TOP = (3,) * 6
Column = NDArray[np.float64]


STRATEGIES: dict[str, StrategyFactory] = {
    "random": functools.partial(Random, unique=False),
    "REINFORCE": functools.partial(Reinforce, unique=False),
    "PPO": functools.partial(PPO, unique=False),
    "regularized evolution": functools.partial(RegularizedEvolution, unique=False),
    "local search": LocalSearch,
    "surrogate (default)": Surrogate,
}


@functools.cache
def columns() -> dict[str, Any]:
    """The core table."""
    spec = importlib.util.spec_from_file_location("shared_data", DATA / "load.py")
    if spec is None or spec.loader is None or not DATA.exists():
        raise FileNotFoundError("this benchmark reads NAS-Bench-201 from ../shared/data")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table: dict[str, Any] = module.nasbench201()
    return table


def read_columns(file: str, names: list[str]) -> dict[str, Any]:
    """name -> (rows,) values of one of the tables beside the core one."""
    import pyarrow.parquet

    read = pyarrow.parquet.read_table(DATA / "nasbench201" / file, columns=names)
    return {name: read[name].to_numpy() for name in names}


def table(data: str, *, full: bool, extra: dict[str, Column] | None = None) -> Table:
    """The cells on one data set. full: with the 200-epoch training as well as the 12-epoch one. extra: further metrics of
    both."""
    core, more = columns(), extra or {}
    operators = np.stack([core[name] for name in cell201.NAMES], axis=1)
    second = core[f"{data}_sec_per_epoch"].astype(np.float64)
    fidelities = {_LOW: ("e12", 12 * second), **({_FULL: ("e200", 200 * second)} if full else {})}
    metrics = {
        f: {"accuracy": core[f"{data}_valid_{e}"], "params": core[f"{data}_params"], **more} for f, (e, _) in fidelities.items()
    }
    seconds = {f: s for f, (_, s) in fidelities.items()}
    return cell201_table(operators, metrics, seconds, {"test_accuracy": core[f"{data}_test_e200"]}, f"NAS-Bench-201 {data}")


def only_full(both: Table, data: str) -> Table:
    """The same table with nothing but its full trainings, and how sure their accuracies are."""
    alone = dataclasses.replace(both, columns={_FULL: both.columns[_FULL]}, seconds={_FULL: both.seconds[_FULL]})
    return alone.sampled("accuracy", _SAMPLES[data])


def replay(data: str, name: str, seed: int) -> float:
    """200-epoch test accuracy, in percent, of what the strategy chooses within the simulated seconds."""
    both = _tables(data, name == "surrogate (default)")
    found = search(both.space, both, strategy=STRATEGIES[name], effort=f"{_SETS[data][1]} s", seed=seed)
    return found.best.test["test_accuracy"]


@functools.cache
def _tables(data: str, full: bool) -> Table:
    return table(data, full=full)


@functools.cache
def latency_table() -> Table:
    found = read_columns("nasbench201_hw.parquet", ["index", "help_gold_6226_ms"])
    latency = found["help_gold_6226_ms"][np.argsort(found["index"])]
    return only_full(table("c10", full=True, extra={"latency_ms": latency}), "c10")


def front(strategy: StrategyFactory, seed: int) -> float:
    """Hypervolume of the chosen cells, their test errors and latencies, over that of the exact front of the test columns.

    The reference point is the worst error and the worst latency on the exact front, 10 % of its range further out.
    """
    cells = latency_table()
    goals = (Objective("accuracy", maximize=True), Objective("latency_ms"))
    found = search(cells.space, cells, strategy=strategy, effort=BUDGET, objectives=goals, seed=seed)
    chosen = np.array([(100 - each.test["test_accuracy"], each.validation["latency_ms"]) for each in found.front])
    exact, reference = exact_front("test")
    return hypervolume(chosen, reference) / hypervolume(exact, reference)


@functools.cache
def exact_front(split: Literal["validation", "test"]) -> tuple[Column, tuple[float, ...]]:
    """Of error and latency by the accuracies of a split, (n, 2), and the reference point: 10 % of its range beyond its ends."""
    cells = latency_table()
    accuracy = cells.test_columns["test_accuracy"] if split == "test" else cells.columns[_FULL]["accuracy"]
    points = np.stack([100 - accuracy, cells.columns[_FULL]["latency_ms"]], axis=1)
    points = points[np.lexsort((points[:, 0], points[:, 1]))]
    exact = points[points[:, 0] < np.concatenate([[np.inf], np.minimum.accumulate(points[:, 0])[:-1]])]
    return exact, tuple((exact.max(0) + 0.1 * np.ptp(exact, axis=0)).tolist())


def smaller(data: str, seed: int) -> tuple[float, float]:
    """Parameters over the parent's, and the parent's test accuracy minus the chosen cell's."""
    cells = only_full(_tables(data, True), data)
    parent = cells.space.values(_TOP)
    size = float(cells.columns[_FULL]["params"][cells.row(parent)])
    limit = Limit("params", high=_SMALLER[data] * size)
    found = search(cells.space, cells, effort=BUDGET, limits=(limit,), seed=seed)
    drop = cells.test(parent)["test_accuracy"] - found.best.test["test_accuracy"]
    return found.best.validation["params"] / size, drop


class Quantized:
    """The table's accuracy with float weights or after 8-bit post-training quantization, and the size in bytes of the weights."""

    source: Source = "table"
    fidelities = (_FULL,)
    name = "AnalogNAS-Bench, baseline and PTQ"
    size_of = staticmethod(cell201.parameters)

    def __init__(self) -> None:
        found = read_columns("nasbench201_quant_analog.parquet", ["index", "analog_base", "analog_ptq"])
        order = np.argsort(found["index"])
        self.accuracy = {32: found["analog_base"][order], 8: found["analog_ptq"][order]}
        core = columns()
        operators = np.stack([core[name] for name in cell201.NAMES], axis=1)
        self.rows = {tuple(cell): i for i, cell in enumerate(operators.tolist())}
        self.params = core["c10_params"]
        self.cells = cell201.space()
        self.space = product(cell=self.cells, precision=Space((Ordinal("bits", (8, 32)),)))

    def evaluate(self, job: Job) -> Outcome:
        parts = split(job.values)
        row_, bits = self.rows[self.cells.architecture(parts["cell"])], int(parts["precision"]["bits"])
        return Outcome({"accuracy": float(self.accuracy[bits][row_]), "size_bytes": float(self.params[row_]) * bits / 8})


@functools.cache
def _quantized() -> Quantized:
    return Quantized()


def ptq(seed: int) -> float:
    """Best accuracy after PTQ in the table minus that of what is chosen, in points."""
    cells = _quantized()
    limit = Limit("size_bytes", high=1.6e6)
    found = search(cells.space, cells, effort=BUDGET, limits=(limit,), seed=seed)
    return float(cells.accuracy[8].max()) - found.best.validation["accuracy"]


def cases() -> Iterable[tuple[str, Callable[[int], Any]]]:
    """Name -> function of a seed. A name is `case|metric`, or several metrics with commas."""
    for name in STRATEGIES:
        for data in _SETS:
            yield f"replay {data}, {name}|test accuracy", functools.partial(replay, data, name)
    for name, strategy in {"random": Random, "NSGA-II": NSGA2, "surrogate (default)": Surrogate}.items():
        yield f"front c10 and latency, {name}|hypervolume", functools.partial(front, strategy)
    for data in _SETS:
        yield f"smaller {data}, surrogate (default)|params ratio,drop of test accuracy", functools.partial(smaller, data)
    yield "ptq, surrogate (default)|regret", ptq


def values(name: str, run: Callable[[int], Any], seeds: int) -> NDArray[np.float64]:
    """(seeds, metrics); what the same code computed before is read from runs/bench."""
    done = {(r["case"], r["seed"]): r["values"] for r in _lines() if r.get("code") == _code()}
    with _DONE.open("a") as stream:
        for seed in range(seeds):
            if (name, seed) not in done:
                done[name, seed] = np.atleast_1d(np.asarray(run(seed), dtype=np.float64)).tolist()
                stream.write(json.dumps({"case": name, "seed": seed, "values": done[name, seed], "code": _code()}) + "\n")
                stream.flush()
    return np.array([done[name, seed] for seed in range(seeds)])


def summary(name: str, found: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Rows of a case, `case|metric,metric`: mean, its interval, the spread over seeds. found (seeds, metrics); printed too."""
    case, _, metrics = name.partition("|")
    rows = []
    for metric, column in zip(metrics.split(","), found.T, strict=True):
        mean, spread = float(column.mean()), float(column.std(ddof=1))
        half = 1.96 * spread / math.sqrt(len(column))
        measured = Measurement(metric, mean, "", len(column), mean - half, mean + half)
        rows.append(row(case, measured, standard_deviation=round(spread, 5), source="table"))
        print(f"{case:45s} {metric:22s} {mean:.4f} +- {spread:.4f}", flush=True)
    return rows


@functools.cache
def _code() -> str:
    """Of what the figures depend on: the modules of paredown.nas that are imported above, and what a case does with them."""
    names = sorted(name for name in sys.modules if name.startswith("paredown.nas."))
    sources = [inspect.getsource(sys.modules[name]) for name in names]
    sources += [inspect.getsource(each) for each in (table, only_full, replay, front, smaller, Quantized, ptq)]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def _lines() -> list[dict[str, Any]]:
    _DONE.parent.mkdir(parents=True, exist_ok=True)
    text = _DONE.read_text() if _DONE.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def main(seeds: int = 200, *only: str) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, run in cases():
        if only and not name.startswith(only):
            continue
        rows += summary(name, values(name, run, seeds))
    if not only:
        print(write("nas201.csv", rows))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
