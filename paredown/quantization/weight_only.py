"""Weights alone on a grid: layers and embeddings stored in 8 or 4 bits, packed in the file, computed in float.

Round to nearest, or GPTQ (`gptq.py`), AWQ (`awq.py`), HQQ (`hqq.py`). A row of a weight has one scale for `group` numbers.
"""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.core.progress import Progress, silent
from paredown.core.steps import Quantize
from paredown.quantization.awq import awq_
from paredown.quantization.gptq import gptq_
from paredown.quantization.hqq import hqq_
from paredown.quantization.model import QuantizedModel
from paredown.quantization.refine import held_batches
from paredown.quantization.static import prepare_for, set_weight_scales_
from paredown.task.batches import Inputs, call, evaluating, unfused
from paredown.task.task import Task


def quantize_weights(model: nn.Module, task: Task, config: Quantize, *, progress: Progress = silent) -> QuantizedModel:
    """The simulation of `model`, which is left untouched, with its weights on grids.

    GPTQ and AWQ read up to config.samples samples of task.train. What task.protect names stays in float too.
    Raises NothingToQuantizeError, RecipeError (unknown module in config.protect), TraceError, BatchError.
    """
    quantized = prepare_for(task, model, config, reduced=False)
    batches = held_batches(quantized, task, config.samples) if config.weights.method in ("gptq", "awq") else []
    progress("rounding", 0.0)
    if config.weights.method == "awq":
        awq_(quantized, batches)
    with torch.no_grad():
        set_weight_scales_(quantized)
    if config.weights.method == "gptq":
        gptq_(quantized, batches)
    elif config.weights.method == "hqq":
        hqq_(quantized)
    progress("rounding", 1.0)
    return quantized


def looks_up(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the model reads tables by the embedding operator, in nn.Embedding or written out. It runs once, for evaluation."""
    lookups = _Lookups()
    with evaluating(model), unfused(), torch.no_grad(), lookups:
        call(model, inputs)
    return lookups.found


class _Lookups(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """found: whether the embedding operator has run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.found = False

    def __torch_dispatch__(self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.found |= func is torch.ops.aten.embedding.default
        return func(*args, **(kwargs or {}))
