"""Zen-score (Lin et al., arXiv:2102.01063, algorithm 1): how much the features change with the input, batch norms accounted for.

Weights of convolutions and linear layers are drawn from N(0, 1); with x, e ~ N(0, 1), a = 0.01,
    score = log mean |f(x) - f(x + a e)| + sum over batch norms of log sqrt(mean over channels of the batch variance),
averaged over `draws`. f: what goes into the last linear layer.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paredown.nas.evaluators.proxies.copied import copied

_STEP = 0.01


def zen(model: nn.Module, inputs: Tensor, *, draws: int = 4, seed: int = 0) -> float:
    """inputs (batch, ...): only their shape counts. -inf where the features don't depend on the input."""
    generator = torch.Generator().manual_seed(seed)
    twin = copied(model, training=True)
    with torch.no_grad():
        values = [_draw(twin, inputs.shape, generator) for _ in range(draws)]
    return sum(values) / draws


def _draw(model: nn.Module, shape: torch.Size, generator: torch.Generator) -> float:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
    x, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    with _watched(model) as seen:
        model(x)
        one, variances = seen["features"], list(seen["variances"])
        model(x + _STEP * noise)
        change = (one - seen["features"]).abs().flatten(1).sum(1).mean()
    if change == 0 or any(v == 0 for v in variances):
        return -math.inf
    return float(change.log()) + sum(0.5 * math.log(v) for v in variances)


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
