"""A supernet: the subnets of an elastic space share one set of weights and are evaluated with what they inherit of it.

Sandwich rule and in-place distillation (Yu and Huang, arXiv:1903.05134): each step trains the largest subnet on the task's own
loss, and the smallest and a few random ones on what the largest gives for the same batch, which gets no gradient from them:

    loss = (hard(largest) + sum over the others of soft(other, largest)) / number of subnets

What a subnet inherits are weights; its batch norms' statistics are measured anew before each evaluation.
"""

import functools
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from paredown.core.progress import Progress, silent
from paredown.core.training import Resume, Training
from paredown.graph.manifest import Manifest
from paredown.graph.sharing import shared_cut
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs, count_parameters
from paredown.measure.quality import score
from paredown.nas.elastic import Elastic
from paredown.nas.evaluators.evaluator import Job, Outcome, Values
from paredown.nas.evaluators.training import Finish, finished_by, standard_error, unfinished
from paredown.nas.problem import Source
from paredown.task.batches import Batch, Batches, apply_tensors, call, evaluating
from paredown.task.task import Task
from paredown.train.batchnorm import recalibrate_
from paredown.train.layout import trains_channels_last
from paredown.train.loop import fit_
from paredown.train.seeds import seeded
from paredown.train.state import Keeping, model_digest

Hard: TypeAlias = Callable[[nn.Module, Batch, Any], Tensor]  # (model, batch, its output) -> scalar
Soft: TypeAlias = Callable[[Any, Any, Batch], Tensor]  # (a subnet's output, the largest one's, batch) -> scalar
Cost: TypeAlias = Callable[[nn.Module], float]
Known: TypeAlias = Callable[[Values], float]
_DRAWS = 2  # random subnets a step, as in the paper


@dataclass(frozen=True, eq=False)
class Sandwich:
    """The loss of one step. draws: random subnets besides the largest and the smallest. random: where they are drawn from."""

    elastic: Elastic
    hard: Hard
    soft: Soft
    draws: int
    random: np.random.Generator

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        space, (inputs, _) = self.elastic.space, batch
        output = call(model, inputs)
        wanted = apply_tensors(output, lambda tensor: tensor.detach())
        total = self.hard(model, batch, output)
        for architecture in (self.elastic.smallest, *(space.sample(self.random) for _ in range(self.draws))):
            subnet = shared_cut(model, self.elastic.manifest(space.values(architecture)))
            total = total + self.soft(call(subnet, inputs), wanted, batch)
        return total / (2 + self.draws)

    def keep(self) -> dict[str, Tensor]:
        """Where the draws have got to, as text in bytes."""
        text = json.dumps(self.random.bit_generator.state).encode()
        return {"random": torch.tensor(list(text), dtype=torch.uint8)}

    def take_up_(self, kept: Mapping[str, Tensor]) -> None:
        self.random.bit_generator.state = json.loads(bytes(kept["random"].tolist()))


def train_supernet(
    elastic: Elastic,
    batches: Batches,
    losses: tuple[Hard, Soft],
    training: Training,
    *,
    frozen: Collection[str] = (),
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | None = None,
) -> nn.Module:
    """A copy of the elastic space's model, trained so that its subnets work; in one process. The model is not touched.

    losses: hard, of the largest subnet, and soft, of the others against it. frozen: names of modules that stay as they are.
    resume: where it is kept how far the training got. Raises what `fit_` raises.
    """
    supernet = cut(elastic.model, Manifest())
    smallest = shared_cut(supernet, elastic.manifest(elastic.space.values(elastic.smallest)))
    training = replace(training, channels_last=training.channels_last and trains_channels_last(smallest))
    sandwich = Sandwich(elastic, *losses, _DRAWS, np.random.default_rng(seed))
    keeping = None if resume is None else Keeping(resume, _key(elastic, seed), sandwich)
    shown = lambda _, fraction: progress("supernet", fraction)  # noqa: E731 (one line)
    return fit_(supernet, batches, sandwich, training, frozen=frozen, seed=seed, progress=shown, keeping=keeping)


def _key(elastic: Elastic, seed: int) -> str:
    """Of all that the training depends on but the batches and the losses."""
    smallest = elastic.manifest(elastic.space.values(elastic.smallest))  # of each group the channels that rank highest
    return f"supernet {model_digest(elastic.model)} {elastic.space.to_json()} {smallest} {seed}"


@dataclass(frozen=True, eq=False)
class SupernetEvaluator:
    """A subnet's quality with the weights that it inherits from `supernet`, and its costs.

    task: its validation split is what the metric is taken of; test data are never read. costs: further metrics, each a
    function of the subnet, such as its latency in a runtime. known: those that its values alone tell (`BlockLatency`).
    batches: of the training data, for new statistics of batch norms. finish: what takes the inputs in the subnet's place.
    Metrics: the task's own by its name, "params", "macs", the costs and what is known. It pickles where its functions do.
    """

    elastic: Elastic
    supernet: nn.Module
    task: Task
    costs: Mapping[str, Cost] = field(default_factory=dict)
    known: Mapping[str, Known] = field(default_factory=dict)
    finish: Finish = unfinished
    batches: int = 10
    source: Source = "supernet"
    fidelities: tuple[float, ...] = (1.0,)

    @functools.cached_property
    def name(self) -> str:
        """With a digest of the weights; costs by their names, since a clock is another one in each process."""
        metrics = ", ".join((str(self.task.scorer), "params", "macs", *self.costs, *self.known))
        finish = "" if self.finish is unfinished else f", {finished_by(self.finish)}"
        return f"supernet of {self.task.name} {model_digest(self.supernet)[:12]}, {self.batches} batches, with {metrics}{finish}"

    def evaluate(self, job: Job) -> Outcome:
        start = time.perf_counter()
        with seeded(job.seed):  # the batches for its batch norms may be drawn
            subnet = self.subnet(job.values)
        with evaluating(subnet):
            quality = score(self.finish(subnet, self.task), self.task, "validation")
        costs = {name: float(cost(subnet)) for name, cost in self.costs.items()}
        costs |= {name: float(cost(job.values)) for name, cost in self.known.items()}
        sizes = {"params": float(count_parameters(subnet)), "macs": float(count_macs(subnet, self.task.inputs))}
        noise = {} if quality.values is None else {quality.name: standard_error(quality.values)}
        return Outcome({quality.name: quality.value, **sizes, **costs}, time.perf_counter() - start, noise)

    def subnet(self, values: Values) -> nn.Module:
        """With inherited weights and statistics of its own: a plain module, in evaluation mode."""
        subnet = self.elastic.subnet(values, self.supernet).eval()
        recalibrate_(subnet, self.task.train, frozen=self.task.protect, batches_at_most=self.batches)
        return subnet
