"""Which entries of each unit stay, under the goal of a pruning step: MACs, a latency, or a threshold."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from paredown.core.budget import Limit
from paredown.core.errors import NothingToPruneError, RecipeError
from paredown.core.steps import ChannelAttention, Prune
from paredown.core.training import Resume
from paredown.graph.groups import Groups
from paredown.graph.surgery import cut
from paredown.graph.units import Units, original_sizes
from paredown.measure.cost import count_macs, count_parameters
from paredown.measure.latency_table import LatencyTable
from paredown.pruning.latency import losses, savings, select_widths
from paredown.pruning.objective import output_distance
from paredown.pruning.scores import ADDITIVE, calibration
from paredown.pruning.select import Keep, Scores, below, select
from paredown.task.batches import Batch, batch_size, call, evaluating
from paredown.task.task import Task
from paredown.train.batchnorm import recalibrate_
from paredown.train.seeds import seeded

_LATENCY_TRIALS = 7  # each cuts a model and measures it in its runtime
Latency = Callable[[nn.Module], float]


@dataclass(frozen=True, eq=False)
class Part:
    """One cut of a schedule.

    fraction: of what the goal removes, in (0, 1], by this cut and those before it. original: what relative goals, floors and
    ceilings refer to; None: the model that is cut. resume: where it is kept how far the training of a learned importance got.
    objective: (model, batch) -> scalar tensor, what gates that close towards a goal are trained on; None: the task's own loss.
    """

    fraction: float = 1.0
    original: nn.Module | None = None
    resume: Resume | None = None
    objective: Callable[[nn.Module, Batch], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise RecipeError("fraction must be in (0, 1]", got=self.fraction, remedy="take it from Schedule.fractions()")


@dataclass(frozen=True, eq=False)
class Job:
    """One cut: what is chosen from, and for what. table: latencies group by group, for a choice over them too."""

    model: nn.Module
    task: Task
    config: Prune
    groups: Groups
    units: Units
    latency: Latency | None = None
    table: LatencyTable | None = None
    part: Part = Part()

    @property
    def original(self) -> nn.Module:
        return self.model if self.part.original is None else self.part.original

    @property
    def may_stay(self) -> bool:
        """Whether the cut may remove nothing: a schedule has another to come, or reached its goal by an earlier one."""
        return self.part.fraction < 1 or count_parameters(self.model) < count_parameters(self.original)

    def allowed(self) -> list[tuple[int, ...]]:
        """Counts that each unit may keep. Floor and ceiling refer to what the goal refers to; whether a group is wide enough to
        be rounded, to the task's own model, which an earlier pruning may have cut.
        """
        sizes, first = (original_sizes(self.groups, self.model, before) for before in (self.original, self.task.model))
        return self.units.allowed(self.config.widths, self.model, sizes, [max(pair) for pair in zip(sizes, first, strict=True)])

    def candidate(self, keep: Sequence[Keep]) -> nn.Module:
        """The model cut so, unchecked."""
        return cut(self.model, self.groups.manifest(self.units.spread(keep)))


def choose(job: Job) -> list[Keep]:
    """(size,) per unit. Raises NothingToPruneError where the goal is met already, or out of reach."""
    config, units, allowed = job.config, job.units, job.allowed()
    limit = config.limit()
    if limit is None:
        assert config.threshold is not None  # Prune has exactly one goal
        return below(_per_atom(units), job.part.fraction * config.threshold, allowed)
    scope: Literal["global", "uniform"] = "uniform" if config.scope == "uniform" else "global"
    macs = functools.partial(_macs, job, count_macs(job.model, job.task.inputs) - job.groups.macs(job.groups.all_kept()))
    pick = functools.partial(select, _worth(job, macs), macs, allowed=allowed, scope=scope)
    goal, now, whole = _costs(job, limit)
    if goal >= now:
        return _as_it_is(job, now)
    if config.latency is None:
        return pick(goal)
    return _Timed(job, allowed, macs, pick, goal, now, whole).choose()


def share_of(job: Job) -> float:
    """Of the present MACs, or latency, what the goal leaves; 1 or more where a schedule got there already.

    Raises NothingToPruneError where the goal is met already otherwise, or out of reach, for which a latency is measured.
    """
    limit = job.config.limit()
    assert limit is not None  # a threshold leaves what it leaves
    goal, now, whole = _costs(job, limit)
    if goal >= now:
        _as_it_is(job, now)
    elif job.config.latency is None:
        choose(job)
    else:
        _fastest(job, job.allowed(), goal, whole)
    return goal / now


def _fastest(job: Job, allowed: Sequence[Sequence[int]], goal: float, whole: float) -> list[Keep]:
    """The choice of the lowest counts. Raises NothingToPruneError where it takes longer than the goal."""
    assert job.latency is not None  # prune_model checks it
    best = job.units.best([counts[0] for counts in allowed])
    fastest = job.latency(job.candidate(best))
    if fastest > goal:
        raise NothingToPruneError(
            "the latency must be within reach of what may be removed",
            got=f"{goal / whole:.3g}x asked, {fastest / whole:.3g}x reachable",
            remedy="ask for less, lower floor or round_to, or protect less",
        )
    return best


def _costs(job: Job, limit: Limit) -> tuple[float, float, float]:
    """MACs, or ms: the goal, the model as it is, and the original."""
    cost = job.latency if job.config.latency is not None else functools.partial(count_macs, inputs=job.task.inputs)
    assert cost is not None  # prune_model checks it
    now = cost(job.model)
    whole = now if job.part.original is None else cost(job.original)
    return whole - job.part.fraction * (whole - limit.absolute(whole)), now, whole


def _per_atom(units: Units) -> list[Scores]:
    """The mean score of the atoms that an entry of a unit stands for: a threshold is in the unit of one atom."""
    atoms = [sum(len(units.order[g]) for g in unit) for unit in units.members]
    return [scores * (len(scores) / total) for scores, total in zip(units.scores, atoms, strict=True)]


def _macs(job: Job, other: float, keep: Sequence[Keep]) -> float:
    """other: MACs of products that the labels don't reach, attention for one."""
    return other + job.groups.macs(job.units.spread(keep))


def _as_it_is(job: Job, cost: float) -> list[Keep]:
    """The whole, where a schedule may have got there already."""
    if job.may_stay:
        return [np.ones(len(s), dtype=np.bool_) for s in job.units.scores]
    raise NothingToPruneError(
        "a goal must lie below what the model costs already", got=f"{job.config.macs or job.config.latency}, it costs {cost:.4g}",
        remedy='write a ratio, as in macs="0.5x"',
    )  # fmt: skip


def _worth(job: Job, macs: Callable[[Sequence[Keep]], float]) -> list[Scores]:
    """What atoms of different units are ranked by."""
    importance = job.config.importance
    additive = isinstance(importance, str) and importance in ADDITIVE
    if not additive:
        return job.units.scores
    return [s / mac for s, mac in zip(job.units.scores, macs_per_atom(_sizes(job.units), macs), strict=True)]


def _sizes(units: Units) -> list[int]:
    return [len(s) for s in units.scores]


def macs_per_atom(sizes: Sequence[int], macs: Callable[[Sequence[Keep]], float]) -> list[float]:
    """MACs that an atom of each group, or unit, saves, on the average over its less important half, the last ones. At least 1.

    sizes: of the groups. macs: of the model that keeps this of each.

    Scores that add up, divided by it, are the order in which a knapsack is filled. ResNet-20 at 0.5x MACs, batch norms
    recalibrated: 68 % top-1, against 55 % by the scores alone (1,000 validation images, benchmarks/criteria.py).
    """
    whole = [np.ones(size, dtype=np.bool_) for size in sizes]
    full, result = macs(whole), list[float]()
    for u, size in enumerate(sizes):
        gone = max(1, size // 2)
        left = np.arange(size) < size - gone
        result.append(max(full - macs([*whole[:u], left, *whole[u + 1 :]]), 1.0) / gone)
    return result


@dataclass(frozen=True, eq=False)
class _Timed:
    """A choice for a latency. allowed: counts of each unit. macs: of the model that keeps this of each unit.

    pick: the choice of so many MACs. goal, now, whole: ms of what is asked, of the model as it is, and of the original.
    """

    job: Job
    allowed: Sequence[Sequence[int]]
    macs: Callable[[Sequence[Keep]], float]
    pick: Callable[[float], list[Keep]]
    goal: float
    now: float
    whole: float

    def ms(self, keep: Sequence[Keep]) -> float:
        assert self.job.latency is not None  # prune_model checks it
        return self.job.latency(self.job.candidate(keep))

    def choose(self) -> list[Keep]:
        """As the config says; of two ways' choices the one that leaves the outputs nearer to the original's."""
        ways = {"macs": self._by_macs, "table": self._by_table}
        names = [name for name in self.job.config.latency_ways if name == "macs" or self.job.table is not None]
        found, missed = list[list[Keep]](), list[NothingToPruneError]()
        for name in names or ["macs"]:
            try:
                found.append(ways[name]())
            except NothingToPruneError as error:  # a measurement is noisy, and few widths are tried: the other may get there
                missed.append(error)
        if not found:
            raise missed[0]
        return found[0] if len(found) == 1 else _nearest(self.job, found)

    def _by_table(self) -> list[Keep]:
        """The exact knapsack over the table."""
        units, table = self.job.units, self.job.table
        assert table is not None  # as `choose` looks
        loss = losses(units, self.allowed)
        if isinstance(self.job.config.importance, ChannelAttention):  # its scores are per MAC
            loss = [column * mac for column, mac in zip(loss, macs_per_atom(_sizes(units), self.macs), strict=True)]
        saving = savings(units, self.allowed, table)

        def measured(counts: Sequence[int]) -> float:
            return self.ms(units.best(counts)) / self.whole

        goal, start = self.goal / self.whole, self.now / self.whole
        return units.best(select_widths(loss, saving, self.allowed, measured, goal, start=start))

    def _by_macs(self) -> list[Keep]:
        """Bisects over MACs, since a measurement is dear and noisy: the largest of the models tried that is fast enough."""
        best = _fastest(self.job, self.allowed, self.goal, self.whole)
        low, high = self.macs(best), float(count_macs(self.job.model, self.job.task.inputs))
        for _ in range(_LATENCY_TRIALS - 1):
            middle = (low + high) / 2
            keep = self.pick(middle)
            low, high, best = (middle, high, keep) if self.ms(keep) <= self.goal else (low, middle, best)
        return best


def _nearest(job: Job, candidates: Sequence[list[Keep]]) -> list[Keep]:
    """The candidate whose outputs are nearest to the original's, before any training; the first where none can be told.

    Labels and the user's own training step don't come into it. Scores summed over what is removed tell little where most of a
    group goes.
    """
    with seeded(0):
        batches = list(calibration(job.task))
    distances = [_distance(job, job.candidate(keep), batches) for keep in candidates]
    return candidates[int(np.argmin(distances))]


@torch.no_grad()
def _distance(job: Job, candidate: nn.Module, batches: Sequence[Batch]) -> float:
    """Of the outputs over these batches, once batch norms are recalibrated on them; infinite where it isn't a number."""
    several = [batch for batch in batches if batch_size(batch[0]) > 1]  # a batch norm can't be recalibrated on one sample
    if several:
        recalibrate_(candidate, several, frozen=job.task.protect)
    with evaluating(candidate):
        found = [float(output_distance(call(candidate, inputs), inputs, job.original)) for inputs, _ in batches]
    mean = float(np.mean(found))
    return mean if math.isfinite(mean) else math.inf
