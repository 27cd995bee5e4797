"""Latency of a subnet from a table of its blocks, corrected linearly: thousands of subnets at the price of a few dozen timings.

    sum(x)     = base + sum over dimensions d of (t[d, x_d] - base)     t: the whole model with nothing but d at x_d
    product(x) = base * product over dimensions d of t[d, x_d] / base
    latency(x) = a + b sum(x) + c product(x)          a, b, c >= 0: least squares over a few subnets timed for real

Savings of branches that are skipped add up, those of widths that meet in a layer multiply; the fit finds out which it is, and the
error says how well. Each entry is timed within the model, in the target's runtime, not as a block alone: what a runtime fuses
across blocks is in it. Look-up tables after ProxylessNAS (arXiv:1812.00332). What a search returns is timed for real too.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from paredown.core.errors import ArtifactError, MeasurementError
from paredown.core.progress import Progress, silent
from paredown.measure.latency_table import LatencyTable
from paredown.nas.dimensions import ActiveIf
from paredown.nas.elastic import Elastic
from paredown.nas.evaluators.evaluator import Values
from paredown.nas.problem import Vector
from paredown.nas.space import Space

Latency = Callable[[nn.Module], float]  # ms of a model in the target's runtime
TIMED = 10  # subnets that are timed as a whole, for the fit


@dataclass(frozen=True)
class Timed:
    """Subnets that were timed as a whole: their values, and ms."""

    values: tuple[Mapping[str, Any], ...] = ()
    ms: tuple[float, ...] = ()

    def with_one(self, values: Values, ms: float) -> "Timed":
        return Timed((*self.values, dict(values)), (*self.ms, ms))


@dataclass(frozen=True)
class BlockLatency:
    """A function from a subnet's values to ms. table: entries by dimension and option."""

    space: Space
    table: LatencyTable
    timed: Timed = field(default_factory=Timed)

    def __call__(self, values: Values) -> float:
        return float(self.predictors(values) @ self.weights)

    def predictors(self, values: Values) -> Vector:
        """1, sum and product. What lies in a branch that is skipped saves nothing beside it."""
        idle = {c.dimension for c in self.space.constraints if isinstance(c, ActiveIf) and values[c.parent] not in c.values}
        base = self.table.base_ms
        shares = np.array([self.table.at(name, int(value)) / base for name, value in values.items() if name not in idle])
        return np.array([1.0, base * max(1 + float((shares - 1).sum()), 0.0), base * float(shares.prod())])

    @functools.cached_property
    def weights(self) -> Vector:
        """(3,) of the predictors; of the sum alone where nothing was timed as a whole."""
        if not self.timed.ms:
            return np.array([0.0, 1.0, 0.0])
        rows, ms = np.array([self.predictors(values) for values in self.timed.values]), np.array(self.timed.ms)
        found: Vector = nnls(rows / ms[:, None], np.ones(len(ms)))[0]  # relative errors
        return found

    @property
    def error(self) -> float | None:
        """Root mean square of predicted over timed minus 1, three degrees of freedom spent on the fit; None below 4 subnets."""
        if len(self.timed.ms) <= len(self.weights):
            return None
        off = np.array([self(values) / ms - 1 for values, ms in zip(self.timed.values, self.timed.ms, strict=True)])
        return float(np.sqrt((off**2).sum() / (len(off) - len(self.weights))))

    def to_json(self) -> str:
        timed = [{"values": dict(v), "ms": ms} for v, ms in zip(self.timed.values, self.timed.ms, strict=True)]
        return json.dumps({"table": json.loads(self.table.to_json()), "timed": timed}, indent=1)

    @classmethod
    def from_json(cls, space: Space, text: str) -> "BlockLatency":
        """The inverse. Raises ArtifactError where the text has another form."""
        try:
            data: Any = json.loads(text)
            table, rows = LatencyTable.from_json(json.dumps(data["table"])), data["timed"]
            return cls(space, table, Timed(tuple(row["values"] for row in rows), tuple(float(row["ms"]) for row in rows)))
        except (ValueError, KeyError, TypeError, MeasurementError) as error:
            raise ArtifactError(
                "a table of blocks is JSON with table and timed", got=f"{type(error).__name__}: {error}", remedy="delete it"
            ) from error


def timings(space: Space) -> int:
    """How many models are timed for a table and its correction, besides the whole one."""
    return sum(size - 1 for size in space.sizes) + TIMED


def measure_blocks(
    elastic: Elastic,
    latency: Latency,
    *,
    known: BlockLatency | None = None,
    keep: Callable[[BlockLatency], None] = lambda _found: None,
    seed: int = 0,
    progress: Progress = silent,
) -> BlockLatency:
    """The table of an elastic space, and its correction. Weights don't matter, the original's are timed.

    known: what was measured before; only what it lacks is measured. keep: called after each timing, with all that there is.
    """
    space = elastic.space
    whole = space.values(elastic.largest)
    found = known or BlockLatency(space, LatencyTable(_ms(elastic, latency, whole)))
    todo = [(d.name, int(option)) for d in space.dimensions for option in d.options[:-1]]
    subnets = _subnets(elastic, seed)
    for done, (name, option) in enumerate(todo):
        progress("latency of blocks", done / (len(todo) + len(subnets)))
        if option not in found.table.entries.get(name, {}):
            table = found.table.with_entry(name, int(whole[name]), found.table.base_ms)
            ms = _ms(elastic, latency, {**whole, name: option})
            found = BlockLatency(space, table.with_entry(name, option, ms), found.timed)
            keep(found)
    for done, values in enumerate(subnets):
        progress("latency of subnets", (len(todo) + done) / (len(todo) + len(subnets)))
        if done >= len(found.timed.ms):
            found = BlockLatency(space, found.table, found.timed.with_one(values, _ms(elastic, latency, values)))
            keep(found)
    return found


def _subnets(elastic: Elastic, seed: int) -> Sequence[Values]:
    """The smallest, and random ones: always the same of a seed."""
    random = np.random.default_rng(seed)
    drawn = [elastic.space.values(elastic.space.sample(random)) for _ in range(TIMED - 1)]
    return [elastic.space.values(elastic.smallest), *drawn]


def _ms(elastic: Elastic, latency: Latency, values: Values) -> float:
    with torch.no_grad():
        return latency(elastic.subnet(values).eval())
