"""Judged after quantization: what an evaluator of architectures scores is the quantized model, or its file.

SupernetEvaluator(..., finish=AfterQuantization())              subnets with inherited weights, in int8
TrainingEvaluator(..., finish=AfterQuantization(target=...))    each network is trained, quantized, exported, and its file scored
"""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from paredown.core.steps import Quantize
from paredown.core.target import Target
from paredown.deploy.onnx import export_onnx
from paredown.deploy.session import load
from paredown.pipeline.evaluate import predictor
from paredown.pipeline.steps import quantize
from paredown.task.batches import Inputs, call
from paredown.task.task import Task


@dataclass(frozen=True)
class AfterQuantization:
    """What takes the inputs instead of a float model. target: its file in that runtime; None: the simulation in torch.

    Pickles, so other processes can do it. Raises what `quantize` and `export` raise: the evaluation is then a failed one.
    """

    config: Quantize = field(default_factory=Quantize)
    target: Target | None = None

    def __call__(self, model: nn.Module, task: Task) -> Callable[[Inputs], Any]:
        quantized = quantize(task, self.config, model=model, target=self.target).eval()
        if self.target is None:
            return functools.partial(call, quantized)
        with tempfile.TemporaryDirectory(prefix="paredown-") as folder:
            file = Path(folder) / "candidate.onnx"
            export_onnx(quantized, task.inputs, file, target=self.target, dynamic=task.dynamic)
            return predictor(load(file, self.target), task)
