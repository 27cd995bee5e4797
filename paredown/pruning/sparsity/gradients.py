"""Gradients of the output, or of the user's own training step, with respect to the weights that may become sparse."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from paredown.core.errors import NotFiniteError
from paredown.pruning.sparsity.layers import Sparse
from paredown.task.batches import Batch, call, tensors
from paredown.task.task import Task


def weight_gradients(
    model: nn.Module, layers: Sequence[Sparse], task: Task, batches: Iterable[Batch], *, seed: int = 0
) -> Iterator[list[Tensor | None]]:
    """For each batch one gradient a layer, None where nothing depends on its weight. Frozen weights have theirs as well.

    Raises NotFiniteError where a gradient isn't finite.
    """
    weights = [layer.module.weight for layer in layers]
    frozen = [weight for weight in weights if not weight.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad():
                loss = _objective(model, task, batch, generator)
                found = torch.autograd.grad(loss, weights, allow_unused=True)
            if not all(bool(torch.isfinite(gradient).all()) for gradient in found if gradient is not None):
                raise NotFiniteError(
                    "gradients must be finite",
                    got="NaN or infinity",
                    remedy="look for log(0) or sqrt(0) in the model or the loss",
                )
            yield list(found)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _objective(model: nn.Module, task: Task, batch: Batch, generator: torch.Generator) -> Tensor:
    if task.train_step is not None:
        return task.train_step(model, batch)
    parts = [tensor for tensor in tensors(call(model, batch[0])) if tensor.is_floating_point()]
    return torch.stack([_projection(tensor, generator) for tensor in parts]).sum()


def _projection(output: Tensor, generator: torch.Generator) -> Tensor:
    direction = torch.randn(output.shape, generator=generator).to(output)
    return (output * direction).sum() / output.detach().square().mean().sqrt().clamp_min(1e-12)
