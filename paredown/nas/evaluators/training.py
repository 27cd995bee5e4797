"""Training as an evaluator, short or full: the network of an architecture is built, trained by `fit_`, and scored on
validation data."""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.core.effort import Effort
from paredown.core.errors import SearchError
from paredown.core.steps import Training
from paredown.measure.cost import count_parameters
from paredown.nas.evaluators.evaluator import Job, Outcome, Values, named
from paredown.nas.problem import Source
from paredown.task.batches import Batch, Batches, Inputs, batch_size, call, each, evaluating
from paredown.task.metric import Metric, top1
from paredown.task.targets import are_shares
from paredown.task.task import Task
from paredown.train.loop import fit_
from paredown.train.seeds import seeded

Predict: TypeAlias = Callable[[Inputs], Any]
Finish: TypeAlias = Callable[[nn.Module, Task], Predict]  # a trained model, in evaluation mode, to what is scored


def unfinished(model: nn.Module, _task: Task) -> Predict:
    """The model as it is."""
    return functools.partial(call, model)


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
    loss: (output, target) -> scalar; cross-entropy doesn't take targets that are numbers.
    finish: what takes the inputs in the trained network's place, such as its quantization.
    Metrics: "accuracy" (mean of the metric on validation; of one whose lower values are better under its own name, so that no
    objective takes it for the other kind), "params".
    """

    build: Callable[[Values], nn.Module]
    data: Callable[[], Data]
    training: Training = dataclasses.field(default_factory=Training)
    fidelities: tuple[float, ...] = (1.0,)
    metric: Metric = top1
    finish: Finish = unfinished
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    source: Source = "training"

    @property
    def name(self) -> str:
        parts = [f"{named(self.build)} on {named(self.data)}", str(self.training)]
        parts += [] if self.loss is F.cross_entropy else [named(self.loss)]
        parts += [] if self.metric == top1 else [f"{self.metric} by {named(self.metric.fn)}"]
        parts += [] if self.finish is unfinished else [finished_by(self.finish)]
        return ", ".join(parts)

    def evaluate(self, job: Job) -> Outcome:
        """Data, building and training start from the job's seed."""
        start = time.perf_counter()
        data = self._data(job.seed)
        model = self.trained(job.values, data, job.fidelity, job.seed)
        values = self._scored(model, data, data.validation)
        metrics = {self._metric: float(values.mean()), "params": float(count_parameters(model))}
        return Outcome(metrics, time.perf_counter() - start, {self._metric: standard_error(values)})

    def trained(self, values: Values, data: Data, fidelity: float = 1.0, seed: int = 0) -> nn.Module:
        """The network of an architecture, trained, in evaluation mode: the search's winner as a plain module."""
        with seeded(seed):
            model = self.build(values)
        training = shortened(self.training, fidelity)
        return fit_(model, data.train, self._loss, training, seed=seed)

    def module(self, values: Values, seed: int = 0) -> nn.Module:
        """The network of an architecture, trained in full on the evaluator's own data: what to prune, quantize or export."""
        return self.trained(values, self._data(seed), seed=seed)

    def test(self, values: Values, seed: int = 0) -> Mapping[str, float]:
        """Test metrics of an architecture, trained in full once more and finished as in the search; none where there are no test
        data.
        """
        data = self._data(seed)
        if data.test is None:
            return {}
        model = self.trained(values, data, seed=seed)
        return {f"test_{self._metric}": float(self._scored(model, data, data.test).mean())}

    def _data(self, seed: int) -> Data:
        with seeded(seed):
            return self.data()

    def _scored(self, model: nn.Module, data: Data, batches: Batches) -> NDArray[np.float64]:
        with evaluating(model):
            predict = functools.partial(call, model) if self.finish is unfinished else self.finish(model, self.task(model, data))
            return per_sample(predict, batches, self.metric)

    @property
    def _metric(self) -> str:
        return "accuracy" if self.metric.higher_is_better else str(self.metric)

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, target = batch
        output = call(model, inputs)
        if self.loss is F.cross_entropy and isinstance(target, Tensor) and _is_number(output, target):
            raise SearchError(
                "cross-entropy needs targets that are classes, or shares of them", got=f"{target.dtype} {tuple(target.shape)}",
                remedy="pass loss=torch.nn.functional.mse_loss, and a metric"
            )  # fmt: skip
        return self.loss(output, target)

    def task(self, model: nn.Module, data: Data) -> Task:
        """A network with its data, as the steps of compression take it. Raises TaskError where the two don't fit."""
        inputs, _ = next(each(data.validation, "validation", torch.device("cpu")))
        examples = inputs if isinstance(inputs, tuple | dict) else (inputs,)
        return Task(model, examples, data.train, data.validation, metric=self.metric, name="architecture")


def finished_by(finish: Finish) -> str:
    """What tells a finish apart in a store: the fields of a dataclass, the code of a function."""
    return named(finish) if inspect.isfunction(finish) else str(finish)


def _is_number(output: Any, target: Tensor) -> bool:
    """Whether a target is no share of each class, as mixed images have it, and no class."""
    if not target.is_floating_point():
        return False
    classes = isinstance(output, Tensor) and output.dim() > 1 and output.shape == target.shape and output.shape[1] > 1
    return not (classes and are_shares(target, 1))


def shortened(training: Training, fidelity: float) -> Training:
    """The same training over a share of its effort; at least one step."""
    if not 0 < fidelity <= 1:
        raise SearchError("a fidelity is a share in (0, 1]", got=fidelity, remedy="write fidelity=1.0")
    effort = training.effort
    return dataclasses.replace(training, effort=Effort(effort.amount * fidelity, effort.unit))


def mean_metric(model: nn.Module, batches: Batches, metric: Metric = top1) -> float:
    """The mean of a per-sample metric over batches."""
    with evaluating(model):
        return float(per_sample(functools.partial(call, model), batches, metric).mean())


def per_sample(predict: Predict, batches: Batches, metric: Metric) -> NDArray[np.float64]:
    """(samples,)"""
    with torch.no_grad():
        parts = [
            metric.per_sample(predict(inputs), target, batch_size(inputs)).double().numpy()
            for inputs, target in each(batches, "validation", torch.device("cpu"))
        ]
    return np.concatenate(parts)


def standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean of values (samples,)."""
    return float(values.std() / np.sqrt(len(values)))
