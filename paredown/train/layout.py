"""Memory formats in training: channels last is faster for convolutions on CPUs, where it is safe."""

import torch
from torch import nn

from paredown.task.batches import Batch, apply_tensors

_LANES = 8  # floats of an AVX2 register


def trains_channels_last(model: nn.Module) -> bool:
    """False where the model has a 1x1 convolution with a stride and fewer than 8 input channels.

    The gradient of its weight overruns its buffer in channels last on processors with AVX2 and no AVX-512 (oneDNN of torch 2.14,
    jit_1x1:avx2, backward_weights: seen with 2 to 6 channels), and the process ends, or computes on with spoilt memory.
    """
    return not any(
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels // module.groups < _LANES
        for module in model.modules()
    )


def lay_out_(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Weights of 4 dimensions in a memory format, in place."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def laid_out(batch: Batch, memory_format: torch.memory_format) -> Batch:
    """The batch with its inputs of 4 dimensions in a memory format."""
    inputs, target = batch
    return apply_tensors(inputs, lambda t: t.contiguous(memory_format=memory_format) if t.dim() == 4 else t), target
