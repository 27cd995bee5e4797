"""A benchmark's table as an evaluator: nothing is trained, and every result says so (`source="table"`).

Columns are arrays over the whole space, in the order of `space.enumerate()` without constraints (the last dimension fastest).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paredown.core.errors import SearchError
from paredown.nas import cell201
from paredown.nas.evaluators.evaluator import Job, Outcome, Values
from paredown.nas.problem import Capacity, Source
from paredown.nas.space import Space
from paredown.nas.symmetry import OPERATORS

Column = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """columns[fidelity][metric] and seconds[fidelity]: (space.size,), NaN where the benchmark has no value.
    test: metrics for the report alone, never shown to a strategy.
    deviations[fidelity][metric]: (space.size,), the standard deviation of a metric as an estimate, where that is known.
    size_of: as `Sized` says.

    Raises SearchError where a column has another length than the space.
    """

    space: Space
    columns: Mapping[float, Mapping[str, Column]]
    seconds: Mapping[float, Column]
    test_columns: Mapping[str, Column]
    title: str = "table"
    source: Source = "table"
    deviations: Mapping[float, Mapping[str, Column]] = field(default_factory=dict)
    size_of: Capacity | None = None

    def __post_init__(self) -> None:
        everything = [
            *self.test_columns.values(),
            *self.seconds.values(),
            *(c for m in (*self.columns.values(), *self.deviations.values()) for c in m.values()),
        ]
        for column in everything:
            if column.shape != (self.space.size,):
                raise SearchError("a column has one value an architecture", got=column.shape, remedy=f"({self.space.size},)")
        if set(self.columns) != set(self.seconds):
            raise SearchError("each fidelity has metrics and seconds", got=sorted(self.seconds), remedy=f"{sorted(self.columns)}")

    @property
    def fidelities(self) -> tuple[float, ...]:
        return tuple(sorted(self.columns))

    @functools.cached_property
    def name(self) -> str:
        """The title, and a digest of what the table holds."""
        digest = hashlib.blake2b(digest_size=6)
        for fidelity in self.fidelities:
            held = {**self.columns[fidelity], "seconds": self.seconds[fidelity]}
            held |= {f"{metric} deviation": column for metric, column in self.deviations.get(fidelity, {}).items()}
            for metric, column in held.items():
                digest.update(f"{fidelity} {metric}".encode() + column.tobytes())
        return f"{self.title} {digest.hexdigest()}"

    def evaluate(self, job: Job) -> Outcome:
        row = self.row(job.values)
        metrics = {metric: float(column[row]) for metric, column in self.columns[job.fidelity].items()}
        deviation = {metric: float(column[row]) for metric, column in self.deviations.get(job.fidelity, {}).items()}
        return Outcome(metrics, float(self.seconds[job.fidelity][row]), deviation)

    def test(self, values: Values) -> dict[str, float]:
        return {metric: float(column[self.row(values)]) for metric, column in self.test_columns.items()}

    def sampled(self, metric: str, samples: int) -> "Table":
        """The same table, `metric` being a percentage of so many validation samples: its deviation is that of a proportion."""
        deviations = {}
        for fidelity, metrics in self.columns.items():
            share = metrics[metric] / 100
            deviations[fidelity] = {**self.deviations.get(fidelity, {}), metric: 100 * np.sqrt(share * (1 - share) / samples)}
        return dataclasses.replace(self, deviations=deviations)

    def row(self, values: Values) -> int:
        return self._flat(tuple(values.values()))

    @functools.cached_property
    def _rows(self) -> dict[tuple[Any, ...], int]:
        """The options of each architecture, in the order of the dimensions, to its row."""
        rows: dict[tuple[Any, ...], int] = {(): 0}
        for dimension in self.space.dimensions:
            size = len(dimension.options)
            rows = {(*k, v): row * size + i for k, row in rows.items() for i, v in enumerate(dimension.options)}
        return rows

    def _flat(self, options: tuple[Any, ...]) -> int:
        if options not in self._rows:
            raise SearchError("an architecture of the table's space", got=options, remedy="values in the space's own order")
        return self._rows[options]


def cell201_table(
    operators: NDArray[Any], columns: Mapping[float, Mapping[str, Column]], seconds: Mapping[float, Column],
    test: Mapping[str, Column], title: str,
) -> Table:  # fmt: skip
    """A Table over `cell201.space()` from rows in any order. operators: (15,625, 6) indices into OPERATORS, a row's cell."""
    place = np.ravel_multi_index(tuple(np.asarray(operators, dtype=np.int64).T), (len(OPERATORS),) * 6)
    if len(place) != len(OPERATORS) ** 6 or len(np.unique(place)) != len(place):
        raise SearchError("a table lists each of the 15,625 cells once", got=len(np.unique(place)), remedy="check its rows")
    order = np.argsort(place)

    def sorted_(column: Column) -> Column:
        return np.asarray(column, dtype=np.float64)[order]

    return Table(
        cell201.space(),
        {fidelity: {name: sorted_(column) for name, column in metrics.items()} for fidelity, metrics in columns.items()},
        {fidelity: sorted_(column) for fidelity, column in seconds.items()},
        {name: sorted_(column) for name, column in test.items()},
        title,
        size_of=cell201.parameters,
    )


class NatsBench(Protocol):
    """What is used of the official `nats_bench.create(path, "tss")` object."""

    def __len__(self) -> int: ...

    def arch(self, index: int) -> str: ...

    def get_more_info(
        self, index: int, dataset: str, iepoch: Any = None, hp: str = "12", is_random: bool = True
    ) -> dict[str, Any]: ...

    def get_cost_info(self, index: int, dataset: str, hp: str = "12") -> dict[str, Any]: ...


def from_nats_bench(api: NatsBench, dataset: str, *, epochs: Sequence[int] = (12, 200)) -> Table:
    """The official table as a Table. dataset: "cifar10", "cifar100" or "ImageNet16-120".

    Metrics: accuracy in percent (validation, mean over the trials), params, macs; test_accuracy apart. Seconds are those of
    training and of one validation, as `simulate_train_eval` counts them. For CIFAR-10 the half data set serves the search and
    the full one the test, as in the official replay.
    """
    searched = "cifar10-valid" if dataset == "cifar10" else dataset
    count, full = len(api), max(epochs)
    operators = np.array([cell201.architecture(api.arch(i)) for i in range(count)])
    costs = [api.get_cost_info(i, dataset, hp=str(full)) for i in range(count)]
    fixed = {"params": np.array([c["params"] * 1e6 for c in costs]), "macs": np.array([c["flops"] * 1e6 for c in costs])}
    columns, seconds = {}, {}
    for epoch in epochs:
        infos = [api.get_more_info(i, searched, hp=str(epoch), is_random=False) for i in range(count)]
        columns[epoch / full] = {"accuracy": np.array([info["valid-accuracy"] for info in infos]), **fixed}
        seconds[epoch / full] = np.array([info["train-all-time"] + info["valid-per-time"] for info in infos])
    tests = [api.get_more_info(i, dataset, hp=str(full), is_random=False)["test-accuracy"] for i in range(count)]
    return cell201_table(operators, columns, seconds, {"test_accuracy": np.array(tests)}, f"NATS-Bench {dataset}")
