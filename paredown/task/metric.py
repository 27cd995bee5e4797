"""How good an output is: a function of (output, target), per sample or over the whole set, higher or lower better."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paredown.core.errors import MetricError


class Kind(enum.Enum):
    """PER_SAMPLE: fn(output, target) -> one value per sample, (batch,). CORPUS: fn(outputs, targets) -> one number."""

    PER_SAMPLE = "per sample"
    CORPUS = "corpus"


PER_SAMPLE, CORPUS = Kind.PER_SAMPLE, Kind.CORPUS


@dataclass(frozen=True)
class Metric:
    """fn: of tensors. A per-sample metric gets one batch at a time; its value over a set is the mean.
    A corpus metric gets all outputs and all targets, each concatenated on dimension 0.
    """

    fn: Callable[[Any, Any], Any]
    kind: Kind = PER_SAMPLE
    higher_is_better: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise MetricError(
                "a Metric's fn must be a function of (output, target)", got=type(self.fn).__name__, remedy="pass paredown.top1"
            )
        if not isinstance(self.kind, Kind):
            raise MetricError(
                "a Metric's kind must be PER_SAMPLE or CORPUS", got=repr(self.kind), remedy="write kind=paredown.CORPUS"
            )
        if not isinstance(self.higher_is_better, bool):
            raise MetricError(
                "higher_is_better must be True or False", got=repr(self.higher_is_better), remedy="write higher_is_better=False"
            )

    @classmethod
    def of(cls, value: "Metric | Callable[[Any, Any], Any]") -> "Metric":
        """A Metric passes through; a plain callable is per sample, higher better."""
        if isinstance(value, Metric):
            return value
        if not callable(value):
            raise MetricError(
                "metric must be a Metric or a function of (output, target)",
                got=type(value).__name__,
                remedy="pass paredown.top1",
            )
        return cls(value)

    def __str__(self) -> str:
        return self.name or getattr(self.fn, "__name__", "metric")

    def per_sample(self, output: Any, target: Any, batch: int) -> Tensor:
        """(batch,) float64 values, finite. Raises MetricError where their number isn't the batch's."""
        values = torch.as_tensor(self.fn(output, target))
        if values.shape != (batch,):
            raise MetricError(
                f"metric {self} must return one value per sample, shape ({batch},)", got=tuple(values.shape),
                remedy="drop the mean over the batch, or pass Metric(fn, kind=CORPUS)",
            )  # fmt: skip
        values = values.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(values).all()):
            raise MetricError(
                f"metric {self} must be finite", got="NaN or infinity", remedy="guard its division or its logarithm"
            )
        return values

    def corpus(self, outputs: Any, targets: Any) -> float:
        """One number over a whole set. Raises MetricError where fn doesn't return a finite one."""
        try:
            value = float(self.fn(outputs, targets))
        except (TypeError, ValueError, RuntimeError) as error:
            raise MetricError(
                f"corpus metric {self} must return one number", got=str(error), remedy="or pass kind=PER_SAMPLE"
            ) from error
        if not -float("inf") < value < float("inf"):
            raise MetricError(f"metric {self} must be finite", got=value, remedy="guard its division or its logarithm")
        return value


def _correct(output: Tensor, target: Tensor) -> Tensor:
    """logits (batch, classes), labels (batch,) -> 1.0 where the largest logit is the label's."""
    return (output.argmax(dim=1) == target).double()


top1 = Metric(_correct, name="top-1")
