"""A supernet: the subnets of an elastic space share one set of weights and are evaluated with what they inherit of it.

Sandwich rule and in-place distillation (Yu and Huang, arXiv:1903.05134): each step trains the largest subnet on the task's own
loss, and the smallest and a few random ones on what the largest gives for the same batch, which gets no gradient from them:

    loss = (hard(largest) + sum over the others of soft(other, largest)) / number of subnets

What a subnet inherits are weights; its batch norms' statistics are measured anew before each evaluation.
"""

import functools
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from paredown.core.errors import SearchError
from paredown.core.progress import Progress, silent
from paredown.core.training import Training
from paredown.graph.manifest import Manifest
from paredown.graph.sharing import shared_cut
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs, count_parameters
from paredown.measure.quality import score
from paredown.nas.elastic import Elastic
from paredown.nas.evaluators.evaluator import Job, Outcome, Values
from paredown.nas.problem import Source
from paredown.task.batches import Batch, Batches, apply_tensors, call, evaluating
from paredown.task.task import Task
from paredown.train.batchnorm import recalibrate_
from paredown.train.loop import fit_

Hard: TypeAlias = Callable[[nn.Module, Batch, Any], Tensor]  # (model, batch, its output) -> scalar
Soft: TypeAlias = Callable[[Any, Any, Batch], Tensor]  # (a subnet's output, the largest one's, batch) -> scalar
Cost: TypeAlias = Callable[[nn.Module], float]


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


def train_supernet(
    elastic: Elastic,
    batches: Batches,
    losses: tuple[Hard, Soft],
    training: Training,
    *,
    draws: int = 2,
    frozen: Collection[str] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> nn.Module:
    """A copy of the elastic space's model, trained so that its subnets work; in one process. The model is not touched.

    losses: hard, of the largest subnet, and soft, of the others against it. frozen: names of modules that stay as they are.
    Raises SearchError for a negative number of draws, and what `fit_` raises.
    """
    if draws < 0:
        raise SearchError("draws is a number of subnets a step, at least 0", got=draws, remedy="write draws=2")
    supernet = cut(elastic.model, Manifest())
    sandwich = Sandwich(elastic, *losses, draws, np.random.default_rng(seed))
    shown = lambda _, fraction: progress("supernet", fraction)  # noqa: E731 (one line)
    return fit_(supernet, batches, sandwich, training, frozen=frozen, seed=seed, progress=shown)


@dataclass(frozen=True, eq=False)
class SupernetEvaluator:
    """A subnet's quality with the weights that it inherits from `supernet`, and its costs.

    task: its validation split is what the metric is taken of; test data are never read. costs: further metrics, each a
    function of the subnet, such as its latency in a runtime. batches: of the training data, for new statistics of batch norms.
    Metrics: the task's own by its name, "params", "macs", and the costs. It pickles where its costs do.
    """

    elastic: Elastic
    supernet: nn.Module
    task: Task
    costs: Mapping[str, Cost] = field(default_factory=dict)
    batches: int = 10
    title: str = "supernet"
    source: Source = "supernet"
    fidelities: tuple[float, ...] = (1.0,)

    @property
    def name(self) -> str:
        return f"{self.title} of {self.task.name} with {', '.join(('params', 'macs', *self.costs))}"

    def evaluate(self, job: Job) -> Outcome:
        start = time.perf_counter()
        subnet = self.subnet(job.values)
        with evaluating(subnet):
            quality = score(functools.partial(call, subnet), self.task, "validation")
        costs = {name: float(cost(subnet)) for name, cost in self.costs.items()}
        sizes = {"params": float(count_parameters(subnet)), "macs": float(count_macs(subnet, self.task.inputs))}
        return Outcome({quality.name: quality.value, **sizes, **costs}, time.perf_counter() - start)

    def subnet(self, values: Values) -> nn.Module:
        """With inherited weights and statistics of its own: a plain module, in evaluation mode."""
        subnet = self.elastic.subnet(values, self.supernet).eval()
        recalibrate_(subnet, self.task.train, frozen=self.task.protect, batches_at_most=self.batches)
        return subnet
