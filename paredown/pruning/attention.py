"""Channel attention as an importance: learn a gate on every dependency group, read it, fold it into the weights.

With a penalty of the user's gates are soft, and are read at the end:
    minimize  loss(gated model) + penalty * sum_c m_c g_c,     sum_c m_c = 1,  m_c: MACs that atom c saves
so a gate closes where its channel buys little loss for its MACs, and gates compare between groups as they are. Near its
optimum a gate stands at 1 - g_c = penalty m_c / h_c, h_c the loss's curvature there: the second-order importance per MAC.

Towards a goal (`closing.py`) the penalty is what the goal takes, and gates are 0 or 1 in the model that is trained: what is cut
in the end is closed by then, and the weights have begun to recover from it.

The temperature of the sigmoids falls from 1 to its end geometrically, which drives gates apart.
Folding static gates is exact. Gates that depend on the sample are folded as their mean over training batches, and what this
costs is measured (`Attended.before`, `.after`).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from paredown.core.progress import Progress, silent
from paredown.core.steps import ChannelAttention
from paredown.graph.groups import Groups
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs
from paredown.pruning.closing import Closing, Goal, SoftMacs
from paredown.pruning.gates import Gates, Objective, fold_, places
from paredown.pruning.goals import macs_per_atom
from paredown.pruning.objective import mean_objective, own_objective
from paredown.pruning.scores import calibration
from paredown.pruning.select import Keep, Scores
from paredown.task.batches import Batch, device_of, evaluating
from paredown.task.task import Task
from paredown.train.freeze import require_modules
from paredown.train.loop import fit_
from paredown.train.processes import averaged_, from_first, processes
from paredown.train.schedule import Clock, clock_of, rate
from paredown.train.seeds import seeded
from paredown.train.state import Carried, Keeping, under

PENALTY = 0.1  # where neither the user nor a goal says one
_RATE = 0.2  # of the scores under a penalty, a gate
_OPTIMIZER, _OBJECTIVE = "optimizer.", "objective."  # what belongs to them, of what is kept


class Attended(NamedTuple):
    """model: a trained copy with its gates folded in, of the same class. scores: one array (size,) per group, in (0, 1].
    before, after: the mean objective over a few training batches, gated and folded; equal where all gates are static.
    keep: towards a goal, which atoms of each group stay; the others are 0 in `model` already. None without one.
    """

    model: nn.Module
    scores: list[Scores]
    before: float
    after: float
    keep: list[Keep] | None = None


def channel_attention(
    model: nn.Module,
    task: Task,
    groups: Groups,
    config: ChannelAttention,
    *,
    goal: Goal | None = None,
    seed: int = 0,
    progress: Progress = silent,
    keeping: Keeping | None = None,
) -> Attended:
    """Gates on every group of `model`, trained together with a copy of its weights, read, and folded. `model` is not touched.

    goal: what gates close to where `config.penalty` is None; without either, the penalty is PENALTY.
    What is minimized is the goal's objective, or else the task's training step or loss, and where a batch has no target the
    distance to the output of `model`.
    keeping: as `fit_` takes it.
    Raises NotTrainableError, TrainingDivergedError, TaskError, BatchError, and what `goal.choose` does.
    """
    task.require_trainable(model)
    copy = cut(model, Manifest()).eval()
    if config.penalty is not None:
        goal = None
    loss = own_objective(task, model) if goal is None or goal.objective is None else goal.objective
    with seeded(seed):
        gated = Gates(copy, groups, config.gate, task.inputs)
    rule: _Penalty | Closing
    if goal is not None:
        rule = Closing(gated, goal, SoftMacs(groups, count_macs(model, task.inputs), gated.scores.device))
    else:
        shares = torch.from_numpy(np.concatenate(shares_of(groups))).to(gated.scores.device)
        weight = PENALTY if config.penalty is None else config.penalty
        rule = _Penalty(gated, weight, shares, config.training.warmup)
    learning = _Learning(gated, rule, task, config, loss)
    with gated.hooked():
        fit_(
            gated,
            task.train,
            learning,
            config.training,
            frozen=[f"body.model.{name}" for name in (*task.protect, *require_modules(model, config.training))],
            seed=seed,
            progress=lambda _, fraction: progress("gates", fraction),
            keeping=None if keeping is None else dataclasses.replace(keeping, carried=learning),
        )
        learning.end()
        with seeded(seed):
            before, gates = _read(gated, task, loss)
    fold_(copy, places(groups, device_of(copy)), gates)
    with seeded(seed):  # the same batches as before
        after = mean_objective(copy, task, loss)
    shown = gates if gated.closing is None else gated.by_group(gated.closing.soft)
    scores = [gate.detach().cpu().numpy().astype(np.float64) for gate in shown]
    return Attended(copy, scores, before, after, rule.chosen())


def shares_of(groups: Groups) -> list[Scores]:
    """(size,) per group, summing to 1 over all: what an atom saves (`macs_per_atom`)."""
    sizes = [group.size for group in groups.groups]
    saved = macs_per_atom(sizes, groups.macs)
    total = sum(size * mac for size, mac in zip(sizes, saved, strict=True))
    return [np.full(size, mac / total) for size, mac in zip(sizes, saved, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Penalty:
    """A weight on the mean of the gates, each by its share (atoms,) of the MACs."""

    gated: Gates
    weight: float
    shares: Tensor
    warmup: float

    def optimizer(self) -> torch.optim.Optimizer:
        """How far a gate moves says how much its channel is worth, so steps are as long as their gradients."""
        return torch.optim.SGD([self.gated.scores], lr=self.rate(0), momentum=0.9, nesterov=True)

    def rate(self, fraction: float) -> float:
        """As of the weights; in proportion to the number of gates, since each one's part of the penalty is only a share of it."""
        return _RATE * len(self.gated.scores) * rate(fraction, self.warmup)

    def set_(self, fraction: float) -> None:
        """Gates are as their scores say, at any time."""

    def added(self) -> Tensor:
        return self.weight * (self.shares * torch.cat(self.gated.gates())).sum()

    def chosen(self) -> list[Keep] | None:
        return None


@dataclasses.dataclass(eq=False)
class _Learning:
    """The loss of the gated model for the training loop, which learns the scores besides. step: the next one."""

    gated: Gates
    rule: _Penalty | Closing
    task: Task
    config: ChannelAttention
    objective: Objective
    step: int = 0
    clock: Clock | None = None

    def __post_init__(self) -> None:
        self.optimizer = self.rule.optimizer()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.clock is None:
            self.clock = self._clock()
        self._learn_()
        fraction = float(from_first(self.gated.scores.new_tensor(self.clock.fraction(self.step))))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rule.rate(fraction)
        self.gated.temperature = self.config.temperature**fraction
        self.rule.set_(fraction)
        self.step += 1
        value: Tensor = model(self.objective, batch)
        return value + self.rule.added().to(value.dtype)

    def end(self) -> None:
        """After the last step."""
        self._learn_()
        self.gated.temperature = self.config.temperature
        self.rule.set_(1.0)

    def keep(self) -> dict[str, Tensor]:
        """What must be kept to go on later (`train.state.Carried`)."""
        self._learn_()  # so that no gradient has to be kept
        spent = 0.0 if self.clock is None else self.clock.spent()
        kept = {f"{_OPTIMIZER}{name}": value for name, value in self.optimizer.state[self.gated.scores].items()}
        if isinstance(self.objective, Carried):
            kept |= {f"{_OBJECTIVE}{name}": value for name, value in self.objective.keep().items()}
        return kept | {"step": torch.tensor(self.step), "spent": torch.tensor(spent, dtype=torch.float64)}

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        device = self.gated.scores.device
        moments = {name: value.to(device) if value.dim() else value for name, value in under(_OPTIMIZER, kept).items()}
        self.optimizer.state[self.gated.scores] = moments
        if isinstance(self.objective, Carried):
            self.objective.take_up_(under(_OBJECTIVE, kept))
        self.step = int(kept["step"])
        self.clock = self._clock().after(float(kept["spent"]))

    def _clock(self) -> Clock:
        return clock_of(self.config.training.effort, self.task.train, processes())

    def _learn_(self) -> None:
        """One step of the scores, by the gradient of the last loss, which of several processes is their mean."""
        if self.gated.scores.grad is not None:
            averaged_(self.gated.scores.grad)
            self.optimizer.step()
            self.optimizer.zero_grad()


@torch.no_grad()
def _read(gated: Gates, task: Task, objective: Objective) -> tuple[float, list[Tensor]]:
    """The mean objective, and the mean gates, over a few training batches."""
    values, gates = [], []
    with evaluating(gated):
        for batch in calibration(task):
            values.append(float(gated(objective, batch)))
            gates.append(gated.gates())
    return float(np.mean(values)), [torch.stack(each_gate).mean(0) for each_gate in zip(*gates, strict=True)]
