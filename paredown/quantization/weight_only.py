"""Weights alone on a grid: layers and embeddings stored in 8 or 4 bits, packed in the file, computed in float.

Round to nearest, or GPTQ (`gptq.py`), AWQ (`awq.py`), HQQ (`hqq.py`). A row of a weight has one scale for `group` numbers.
"""

import torch
from torch import nn

from paredown.core.progress import Progress, silent
from paredown.core.steps import Quantize
from paredown.quantization.awq import awq_
from paredown.quantization.gptq import gptq_
from paredown.quantization.hqq import hqq_
from paredown.quantization.model import QuantizedModel
from paredown.quantization.refine import held_batches
from paredown.quantization.static import prepare_for, set_weight_scales_
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
