"""Dynamic int8: weights stored in int8, activations rounded by their own range as they come (`graph/dynamic_quantize.py`).

For models that are mostly linear layers: no data is read, nothing is calibrated, and no range can be exceeded. A linear layer's
product is one of integers in the file. The weights of recurrent layers are stored in int8 and computed with in float: their
product with the hidden state lies inside ONNX's LSTM and GRU, which take floats only, and the operators of integers that a
runtime has beside them (DynamicQuantizeLSTM) belong to that runtime alone. Convolutions stay in float.
"""

import torch
from torch import nn

from paredown.core.steps import Quantize
from paredown.quantization.model import QuantizedModel
from paredown.quantization.static import prepare_for, set_weight_scales_
from paredown.task.task import Task


def quantize_dynamic(model: nn.Module, task: Task, config: Quantize, *, reduced: bool) -> QuantizedModel:
    """The simulation of `model`, which is left untouched. reduced: weights on [-63, 63].

    What task.protect names stays in float too.
    Raises NothingToQuantizeError where there are neither linear nor recurrent layers, RecipeError, TraceError.
    """
    quantized = prepare_for(task, model, config, reduced=reduced)
    with torch.no_grad():
        set_weight_scales_(quantized)
    return quantized
