"""Training as an evaluator, short or full: the network of an architecture is built, trained by `fit_`, and scored on
validation data."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.core.effort import Effort
from paredown.core.errors import SearchError
from paredown.core.steps import Training
from paredown.measure.cost import count_parameters
from paredown.nas.evaluators.evaluator import Job, Outcome, Values
from paredown.nas.problem import Source
from paredown.task.batches import Batch, Batches, batch_size, call, each, evaluating
from paredown.task.metric import Metric, top1
from paredown.train.loop import fit_
from paredown.train.seeds import seeded


@dataclass(frozen=True)
class Data:
    """Batches of (inputs, target), re-iterable. test: read for the report alone."""

    train: Batches
    validation: Batches
    test: Batches | None = None


@dataclass(frozen=True)
class TrainingEvaluator:
    """build: values -> untrained network. data: () -> Data, called in the process that trains. Both module-level functions.

    training: the full training, fidelity 1; a lower fidelity shortens its effort, schedule and all. metric: per sample.
    Metrics: "accuracy" (mean of the metric on validation), "params".
    """

    build: Callable[[Values], nn.Module]
    data: Callable[[], Data]
    training: Training = dataclasses.field(default_factory=Training)
    fidelities: tuple[float, ...] = (1.0,)
    metric: Metric = top1
    source: Source = "training"

    @property
    def name(self) -> str:
        build, data = (f"{f.__module__}.{f.__qualname__}" for f in (self.build, self.data))
        return f"{build} on {data}, {self.training}"

    def evaluate(self, job: Job) -> Outcome:
        """Building and training start from the job's seed."""
        start = time.perf_counter()
        data = self.data()
        model = self.trained(job.values, data, job.fidelity, job.seed)
        metrics = {"accuracy": mean_metric(model, data.validation, self.metric), "params": float(count_parameters(model))}
        return Outcome(metrics, time.perf_counter() - start)

    def trained(self, values: Values, data: Data, fidelity: float = 1.0, seed: int = 0) -> nn.Module:
        """The network of an architecture, trained, in evaluation mode: the search's winner as a plain module."""
        with seeded(seed):
            model = self.build(values)
        training = shortened(self.training, fidelity)
        return fit_(model, data.train, cross_entropy, training, seed=seed)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    inputs, target = batch
    return F.cross_entropy(call(model, inputs), target)


def shortened(training: Training, fidelity: float) -> Training:
    """The same training over a share of its effort; at least one step."""
    if not 0 < fidelity <= 1:
        raise SearchError("a fidelity is a share in (0, 1]", got=fidelity, remedy="write fidelity=1.0")
    effort = training.effort
    return dataclasses.replace(training, effort=Effort(effort.amount * fidelity, effort.unit))


def mean_metric(model: nn.Module, batches: Batches, metric: Metric = top1) -> float:
    """The mean of a per-sample metric over batches."""
    total, count = 0.0, 0
    with evaluating(model), torch.no_grad():
        for inputs, target in each(batches, "validation", torch.device("cpu")):
            values = metric.per_sample(call(model, inputs), target, batch_size(inputs))
            total, count = total + float(values.sum()), count + len(values)
    return total / count


def on_test(evaluator: TrainingEvaluator, model: nn.Module) -> Mapping[str, float]:
    """Of a trained winner, on the test data, for the report. Raises SearchError where there are none."""
    test = evaluator.data().test
    if test is None:
        raise SearchError("test metrics need test data", got="None", remedy="give Data(test=...)")
    return {"test_accuracy": mean_metric(model, test, evaluator.metric)}
