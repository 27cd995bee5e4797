"""Zen-score (Lin et al., arXiv:2102.01063, algorithm 1): how much the features change with the input, batch norms accounted for.

Weights of convolutions and linear layers are drawn from N(0, 1); with x, e ~ N(0, 1), a = 0.01,
    score = log mean |f(x) - f(x + a e)| + sum over batch norms of log sqrt(mean over channels of the batch variance),
averaged over `draws`. f: what goes into the last linear layer.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paredown.core.errors import SearchError
from paredown.nas.evaluators.proxies.copied import copied, require_numbers
from paredown.task.batches import Inputs, apply_tensors, call, tensors

_STEP = 0.01


def zen(model: nn.Module, inputs: Inputs, *, draws: int = 4, seed: int = 0) -> float:
    """inputs: floating-point; only their shape counts. -inf where the features don't depend on the input.

    Raises SearchError for a model without a linear layer.
    """
    require_numbers("zen", inputs)
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise SearchError("zen reads what goes into the last linear layer", got="none", remedy="use naswot or synflow")
    generator = torch.Generator().manual_seed(seed)
    twin = copied(model, training=True)
    with torch.no_grad():
        values = [_draw(twin, inputs, generator) for _ in range(draws)]
    return sum(values) / draws


def _draw(model: nn.Module, inputs: Inputs, generator: torch.Generator) -> float:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
    x, noise = ([torch.randn(t.shape, generator=generator) for t in tensors(inputs)] for _ in range(2))
    moved = [a + _STEP * b for a, b in zip(x, noise, strict=True)]
    with _watched(model) as seen:
        call(model, _like(inputs, x))
        one, variances = seen["features"], list(seen["variances"])
        call(model, _like(inputs, moved))
        change = (one - seen["features"]).abs().flatten(1).sum(1).mean()
    if change == 0 or any(v == 0 for v in variances):
        return -math.inf
    return float(change.log()) + sum(0.5 * math.log(v) for v in variances)


def _like(inputs: Inputs, values: Sequence[Tensor]) -> Inputs:
    """Inputs of the same structure that hold these tensors, in order."""
    left = iter(values)
    found: Inputs = apply_tensors(inputs, lambda _: next(left))
    return found


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Any]]:
    """seen["features"]: the input of the last linear layer; seen["variances"]: of each batch norm's input, mean over channels."""
    seen: dict[str, Any] = {"features": None, "variances": []}
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]

    def features(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["features"] = inputs[0]

    def variance(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        dimensions = [i for i in range(inputs[0].dim()) if i != 1]
        seen["variances"].append(float(inputs[0].var(dimensions, correction=0).mean()))

    hooks = [module.register_forward_pre_hook(features) for module in linear]
    hooks += [m.register_forward_pre_hook(variance) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
