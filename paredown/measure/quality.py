"""How good a model or a file is on a split, how much worse than the baseline, and how sure both are.

Every interval here is two one-sided bounds, each at the confidence asked for. Metrics that are 0 or 1 per sample get exact
bounds (`bounds.py`), other per-sample metrics a BCa bootstrap of the mean, corpus metrics a bootstrap that evaluates the
metric anew. A drop is always paired: the same samples in the same order.
Where no sample differs a bootstrap would claim to know that none ever will: there the exact bound of "no flip" is used,
times the range of the per-sample values, or times the value of a corpus metric.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paredown.core.errors import BatchError, MetricError, TaskError
from paredown.core.measurement import Measurement
from paredown.measure.bootstrap import Interval, Vector, mean_bounds, set_bounds
from paredown.measure.bounds import drop_bounds, proportion_bounds, samples_needed, smallest_drop
from paredown.task.batches import Inputs, apply_tensors, batch_size, check_finite, digests, each, fitting, joined, tensors
from paredown.task.metric import Kind, Metric
from paredown.task.task import Task

__all__ = ["Scores", "drop", "quality", "samples_needed", "score", "smallest_drop"]


@dataclass(frozen=True, eq=False)
class Scores:
    """The metric over a split. value: over all `n` samples.

    values: per sample, (n,) float64; None for a corpus metric, which keeps outputs and targets instead, samples on
    dimension 0. digest: of the inputs in their order, by which a drop knows that it compares like with like.
    """

    metric: Metric
    value: float
    n: int
    digest: str
    values: Vector | None = None
    outputs: Any = None
    targets: Any = None

    @property
    def name(self) -> str:
        return str(self.metric)

    @property
    def higher_is_better(self) -> bool:
        return self.metric.higher_is_better

    @property
    def is_binary(self) -> bool:
        """Whether the metric is 0 or 1 for every sample, so that its bounds are exact."""
        return self.values is not None and _is_binary(self.values)


def score(predict: Callable[[Inputs], Any], task: Task, split: str) -> Scores:
    """The task's metric of `predict` over a split ("train", "validation", "test").

    predict: inputs as the split gives them, on the model's device -> outputs as the model gives them.
    Raises TaskError or one of its kinds: no such split, outputs that are not finite, a metric of the wrong length.
    """
    batches = getattr(task, split)
    if batches is None:
        raise TaskError(f"the task has no {split} data", got="None", remedy=f"pass Task({split}=...)")
    metric, digest, parts = task.scorer, hashlib.blake2b(digest_size=16), []
    for inputs, target in each(batches, split, task.device):
        for sample in digests(inputs):
            digest.update(sample)
        with torch.no_grad(), fitting(split, inputs):
            output = predict(inputs)
        _check_output(output, batch_size(inputs), split)
        parts.append(_part(metric, output, _beside(target, output), batch_size(inputs)))
    if metric.kind is Kind.PER_SAMPLE:
        values = np.concatenate(parts)
        return Scores(metric, float(values.mean()), len(values), digest.hexdigest(), values)
    outputs, targets = _joined(metric, [p[0] for p in parts]), _joined(metric, [p[1] for p in parts])
    value = metric.corpus(outputs, targets)
    return Scores(metric, value, batch_size(outputs), digest.hexdigest(), outputs=outputs, targets=targets)


def drop(baseline: Scores, candidate: Scores, confidence: float = 0.95, seed: int = 0) -> Measurement:
    """How much worse the candidate is, in metric units; positive = worse, whichever way the metric points.

    low, high: one-sided bounds of the true drop, each at `confidence`. The drop of scores from themselves is exactly 0.
    Raises BatchError where the two were taken of different samples, or in a different order.
    """
    _check_paired(baseline, candidate)
    sign = 1.0 if baseline.higher_is_better else -1.0
    value = sign * (baseline.value - candidate.value) + 0.0  # no -0.0
    if baseline is candidate:
        low, high = 0.0, 0.0
    elif baseline.values is None or candidate.values is None:
        low, high = _corpus_drop(baseline, candidate, sign, confidence, seed)
    else:
        low, high = _sample_drop(sign * (baseline.values - candidate.values), baseline.values, candidate.values, confidence, seed)
    return Measurement("drop", value, "", baseline.n, low, high, confidence)


def quality(scores: Scores, confidence: float = 0.95, seed: int = 0) -> Measurement:
    """The metric with two one-sided bounds, each at `confidence`."""
    if scores.values is None:
        low, high = set_bounds(lambda rows: _on_rows(scores, rows), scores.n, confidence, seed)
    elif _is_binary(scores.values):
        low, high = proportion_bounds(int(scores.values.sum()), scores.n, confidence)
    else:
        low, high = mean_bounds(scores.values, confidence, seed)
    return Measurement(scores.name, scores.value, "", scores.n, low, high, confidence)


def _check_output(output: Any, batch: int, split: str) -> None:
    """Finite, and one row for each sample: a metric might broadcast a single row without complaint."""
    check_finite(output, f"the output on {split}")
    first = tensors(output)[0] if tensors(output) else None
    if first is None or first.dim() == 0 or first.shape[0] != batch:
        raise MetricError(
            f"the output on {split} must have its {batch} samples on dimension 0",
            got="no tensor" if first is None else tuple(first.shape),
            remedy="check the file's batch dimension",
        )


def _beside(target: Any, output: Any) -> Any:
    """The target on the output's device: a file's outputs are on the CPU wherever the model is."""
    device = next((tensor.device for tensor in tensors(output)), torch.device("cpu"))
    return apply_tensors(target, lambda tensor: tensor.to(device))


def _part(metric: Metric, output: Any, target: Any, batch: int) -> Any:
    """What is kept of one batch: its values (batch,), or its outputs and targets on the CPU."""
    if metric.kind is Kind.CORPUS:
        return tuple(apply_tensors(nest, lambda t: t.detach().cpu()) for nest in (output, target))
    try:
        return metric.per_sample(output, target, batch).numpy()
    except TaskError:
        raise
    except Exception as error:
        raise MetricError(
            f"metric {metric} must take the outputs of what is measured",
            got=f"{type(error).__name__}: {error}",
            remedy="compare the output's shape with the model's",
        ) from error


def _joined(metric: Metric, nests: Sequence[Any]) -> Any:
    """The same nest with the tensors of all batches concatenated on dimension 0."""
    try:
        result = joined(nests)
    except (RuntimeError, ValueError) as error:
        raise MetricError(
            f"corpus metric {metric} needs outputs and targets that concatenate on dimension 0", got=str(error),
            remedy="pad them to one length, or use a metric per sample",
        ) from error  # fmt: skip
    if len({t.shape[0] for t in tensors(result)}) != 1:
        raise MetricError(
            f"corpus metric {metric} needs the samples on dimension 0 of all outputs and targets",
            got=[tuple(t.shape) for t in tensors(result)],
            remedy="move the batch to dimension 0",
        )
    return result


def _check_paired(baseline: Scores, candidate: Scores) -> None:
    if (baseline.name, baseline.higher_is_better) != (candidate.name, candidate.higher_is_better):
        raise MetricError(
            "a drop needs the same metric on both sides", got=(baseline.name, candidate.name), remedy="score both by one task"
        )
    if (baseline.n, baseline.digest) != (candidate.n, candidate.digest):
        raise BatchError(
            "a drop needs the same samples in the same order on both sides",
            got=f"{baseline.n} and {candidate.n} samples, inputs or their order differ",
            remedy="pass shuffle=False and no augmentation for validation and test",
        )


def _is_binary(values: Vector) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _sample_drop(losses: Vector, before: Vector, after: Vector, confidence: float, seed: int) -> Interval:
    """losses: (n,), positive where the candidate is worse on that sample."""
    n = len(losses)
    if _is_binary(before) and _is_binary(after):
        return drop_bounds(int((losses > 0).sum()), int((losses < 0).sum()), n, confidence)
    if not losses.any():
        reach = float(np.ptp(before)) * smallest_drop(n, confidence)
        return -reach, reach
    return mean_bounds(losses, confidence, seed)


def _corpus_drop(baseline: Scores, candidate: Scores, sign: float, confidence: float, seed: int) -> Interval:
    low, high = set_bounds(
        lambda rows: sign * (_on_rows(baseline, rows) - _on_rows(candidate, rows)), baseline.n, confidence, seed
    )
    if low < high:
        return low, high
    reach = abs(baseline.value) * smallest_drop(baseline.n, confidence)
    return low - reach, high + reach


def _on_rows(scores: Scores, rows: Any) -> float:
    """A corpus metric on a resample; NaN where that resample has none (a class that it missed, say)."""
    index = torch.from_numpy(np.asarray(rows))

    def pick(tensor: Tensor) -> Tensor:
        return tensor[index]

    try:
        return scores.metric.corpus(apply_tensors(scores.outputs, pick), apply_tensors(scores.targets, pick))
    except MetricError:
        return float("nan")
