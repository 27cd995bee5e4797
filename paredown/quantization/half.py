"""Weights as 16-bit floats, the mildest step: half the bytes of the file, computed in fp32.

    fp16  5 bits of exponent, 11 of precision: up to 65504, relative error at most 2^-11
    bf16  8 bits of exponent, 8 of precision: the range of fp32, relative error at most 2^-8

The weights of layers and tables are converted; biases and norms, which take few bytes, stay as they are.
"""

import torch
from torch import nn

from paredown.core.errors import RecipeError
from paredown.core.steps import Quantize
from paredown.quantization.model import QuantizedModel
from paredown.quantization.static import prepare_for, stored_weights
from paredown.task.task import Task


def quantize_half(model: nn.Module, task: Task, config: Quantize) -> QuantizedModel:
    """The simulation of `model`, which is left untouched. What task.protect names stays in fp32. Reads no data.

    Raises RecipeError where a weight is too large for fp16, NothingToQuantizeError, TraceError.
    """
    quantized = prepare_for(task, model, config, reduced=False)
    with torch.no_grad():
        for key, weight in stored_weights(quantized):
            largest = float(weight.abs().max()) if weight.numel() else 0.0
            if not torch.isfinite(quantized.quantizers[key](weight)).all():
                raise RecipeError(
                    "a weight in fp16 must be at most 65504", got=f"{largest:.3g} at {key}", remedy='write kind="bf16"'
                )
    return quantized
