"""Memory formats in training: channels last is faster for convolutions on CPUs, where it is safe."""

import copy

import torch
from torch import fx, nn

from paredown.task.batches import Batch, Batches, Inputs, apply_tensors, call, device_of, each, first_samples
from paredown.train.seeds import seeded

_BLOCK = 16  # channels that oneDNN takes at once with AVX-512; 8 with AVX2


def layout_for(model: nn.Module, batches: Batches) -> torch.memory_format:
    """Channels last where that is safe, but for a model that runs in the ordinary layout alone: with `x.view(len(x), -1)` behind
    a convolution, say.

    Looks at the first batch of a model with convolutions; the global generators are left as they were.
    """
    if not any(parameter.dim() == 4 for parameter in model.parameters()) or not trains_channels_last(model):
        return torch.contiguous_format
    with seeded(0):
        inputs, _ = next(each(batches, "train", device_of(model)))
    trial, few = copy.deepcopy(model).eval(), first_samples(inputs, 2)
    if not _runs(trial, few, torch.channels_last) and _runs(trial, few, torch.contiguous_format):
        return torch.contiguous_format
    return torch.channels_last


@torch.no_grad()
def _runs(model: nn.Module, inputs: Inputs, memory_format: torch.memory_format) -> bool:
    """Whether a model takes the inputs in this layout. It is laid out so."""
    lay_out_(model, memory_format)
    try:
        call(model, laid_out((inputs, None), memory_format)[0])
    except Exception:  # whatever it raises: how the loss calls the model is the user's
        return False
    return True


def trains_channels_last(model: nn.Module) -> bool:
    """False where the model has a 1x1 convolution with a stride and fewer than 16 input channels.

    In channels last the gradient of its weight is written beyond its buffer where the channels are fewer than a block: the
    process ends, or goes on with wrong gradients (oneDNN issue 6035, open in torch 2.14; seen with 2 to 6 channels on AVX2).
    """
    if isinstance(model, fx.GraphModule):  # a quantized model's layers are calls: any 1x1 weight may be a strided one's
        return not any(p.dim() == 4 and p.shape[2:] == (1, 1) and p.shape[1] < _BLOCK for p in model.parameters())
    return not any(
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels // module.groups < _BLOCK
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
