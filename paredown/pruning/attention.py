"""Channel attention as an importance: learn a gate on every dependency group, read it, fold it into the weights.

    minimize  loss(gated model) + penalty * sum_c m_c g_c,     sum_c m_c = 1,  m_c: MACs that atom c saves
so a gate closes where its channel buys little loss for its MACs, and gates compare between groups as they are. Near its
optimum a gate stands at 1 - g_c = penalty m_c / h_c, h_c the loss's curvature there: the second-order importance per MAC.
The temperature of the sigmoids falls from 1 to its end geometrically, which drives gates apart.
Folding static gates is exact. Gates that depend on the sample are folded as their mean over training batches, and what this
costs is measured (`Attended.before`, `.after`).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.core.progress import Progress, silent
from paredown.core.steps import ChannelAttention
from paredown.graph.groups import Groups
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut
from paredown.pruning.gates import Gates, Objective, fold_, places
from paredown.pruning.goals import macs_per_atom
from paredown.pruning.select import Scores
from paredown.task.batches import Batch, call, device_of, each, evaluating, tensors
from paredown.task.task import Task
from paredown.train.freeze import require_modules
from paredown.train.loop import fit_
from paredown.train.schedule import Clock, clock_of
from paredown.train.seeds import seeded
from paredown.train.state import Keeping

_SCALE = 3.0  # how fast gates learn (`Gates`)
BATCHES = 10  # of training data, at which gates that depend on the sample are read


class Attended(NamedTuple):
    """model: a trained copy with its gates folded in, of the same class. scores: one array (size,) per group, in (0, 1].
    before, after: the mean objective over a few training batches, gated and folded; equal where all gates are static.
    """

    model: nn.Module
    scores: list[Scores]
    before: float
    after: float


def channel_attention(
    model: nn.Module,
    task: Task,
    groups: Groups,
    config: ChannelAttention,
    *,
    objective: Objective | None = None,
    seed: int = 0,
    progress: Progress = silent,
    keeping: Keeping | None = None,
) -> Attended:
    """Gates on every group of `model`, trained together with a copy of its weights, read, and folded. `model` is not touched.

    objective: (model, batch) -> scalar tensor, a distillation loss for one; None: the task's training step or loss, and where
    a batch has no target the distance to the output of `model`. keeping: as `fit_` takes it.
    Raises NotTrainableError, TrainingDivergedError, TaskError, BatchError.
    """
    task.require_trainable(model)
    copy = cut(model, Manifest()).eval()
    loss = objective or _objective(task, model)
    with seeded(seed):
        gated = Gates(copy, groups, config.gate, task.inputs, _SCALE)
    shares = [torch.from_numpy(s).to(device_of(copy)) for s in shares_of(groups)]
    cooling = _Cooling(gated, task, config, loss, shares)
    with gated.hooked():
        fit_(
            gated,
            task.train,
            cooling,
            config.training,
            frozen=[f"body.model.{name}" for name in (*task.protect, *require_modules(model, config.training))],
            seed=seed,
            progress=lambda _, fraction: progress("gates", fraction),
            keeping=None if keeping is None else dataclasses.replace(keeping, carried=cooling),
        )
        gated.temperature = config.temperature
        with seeded(seed):
            before, gates = _read(gated, task, loss)
    fold_(copy, places(groups, device_of(copy)), gates)
    with seeded(seed):  # the same batches as before
        after = _mean(copy, task, loss)
    return Attended(copy, [gate.cpu().numpy().astype(np.float64) for gate in gates], before, after)


def shares_of(groups: Groups) -> list[Scores]:
    """(size,) per group, summing to 1 over all: what an atom saves (`macs_per_atom`)."""
    sizes = [group.size for group in groups.groups]
    saved = macs_per_atom(sizes, groups.macs)
    total = sum(size * mac for size, mac in zip(sizes, saved, strict=True))
    return [np.full(size, mac / total) for size, mac in zip(sizes, saved, strict=True)]


@dataclasses.dataclass(eq=False)
class _Cooling:
    """The loss of the gated model for the training loop, while the temperature falls. step: the next one."""

    gated: Gates
    task: Task
    config: ChannelAttention
    objective: Objective
    shares: Sequence[Tensor]
    step: int = 0
    clock: Clock | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.clock is None:
            self.clock = clock_of(self.config.training.effort, self.task.train)
        self.gated.temperature = self.config.temperature ** self.clock.fraction(self.step)
        self.step += 1
        value = model(self.objective, batch)
        openness = torch.stack([(share * gate).sum() for share, gate in zip(self.shares, self.gated.gates(), strict=True)]).sum()
        result: Tensor = value + self.config.penalty * openness.to(value.dtype)
        return result

    def keep(self) -> dict[str, Tensor]:
        """What must be kept to go on later (`train.state.Carried`)."""
        spent = 0.0 if self.clock is None else self.clock.spent()
        return {"step": torch.tensor(self.step), "spent": torch.tensor(spent, dtype=torch.float64)}

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        self.step = int(kept["step"])
        self.clock = clock_of(self.config.training.effort, self.task.train).after(float(kept["spent"]))


@torch.no_grad()
def _read(gated: Gates, task: Task, objective: Objective) -> tuple[float, list[Tensor]]:
    """The mean objective, and the mean gates, over a few training batches."""
    values, gates = [], []
    with evaluating(gated):
        for batch in itertools.islice(each(task.train, "train", device_of(gated)), BATCHES):
            values.append(float(gated(objective, batch)))
            gates.append(gated.gates())
    return float(np.mean(values)), [torch.stack(each_gate).mean(0) for each_gate in zip(*gates, strict=True)]


@torch.no_grad()
def _mean(model: nn.Module, task: Task, objective: Objective) -> float:
    batches = itertools.islice(each(task.train, "train", device_of(model)), BATCHES)
    with evaluating(model):
        return float(np.mean([float(objective(model, batch)) for batch in batches]))


def _objective(task: Task, original: nn.Module) -> Objective:
    def objective(model: nn.Module, batch: Batch) -> Tensor:
        inputs, target = batch
        if task.train_step is not None:
            return task.train_step(model, batch)
        output = call(model, inputs)
        return task.loss(output, target) if target is not None else _distance(output, inputs, original)

    return objective


def _distance(output: object, inputs: object, original: nn.Module) -> Tensor:
    """Mean square of the difference to the original's outputs, in units of their own mean square."""
    with torch.no_grad(), evaluating(original):
        wanted = [t for t in tensors(call(original, inputs)) if t.is_floating_point()]  # type: ignore[arg-type]
    found = [t for t in tensors(output) if t.is_floating_point()]
    if len(wanted) != len(found):
        raise TaskError(
            "a model must give the same outputs in training and in evaluation mode",
            got=f"{len(found)} and {len(wanted)} floating-point tensors",
            remedy="give train targets, so that the task's loss is used",
        )
    parts = [F.mse_loss(f, w) / w.square().mean().clamp_min(1e-12) for f, w in zip(found, wanted, strict=True)]
    return torch.stack(parts).mean()
