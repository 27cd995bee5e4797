"""NASWOT (Mellor et al., arXiv:2006.04647, section 3): how differently the ReLUs answer to the samples of one batch.

c_i: for each ReLU output of sample i, 1 where it is positive. K_ij = the number of places where c_i and c_j agree; log |det K|.
Other activations that are near 0 below 0 (ReLU6, GELU, SiLU, ...) count likewise, by what goes into them; layers or functions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.nas.evaluators.proxies.copied import copied
from paredown.task.batches import Inputs, batch_size, call, unfused

_ACTIVATIONS = frozenset(("relu", "relu_", "hardtanh", "hardtanh_", "gelu", "silu", "silu_", "hardswish", "hardswish_",
                          "leaky_relu", "leaky_relu_", "elu", "elu_", "clamp_min", "mish"))  # fmt: skip


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Adds up K over the activations of a pass."""

    def __init__(self, samples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.kernel = torch.zeros(samples, samples, dtype=torch.float64)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        x = args[0] if args else None
        activation = func.overloadpacket.__name__ in _ACTIVATIONS
        if activation and isinstance(x, Tensor) and x.dim() > 1 and len(x) == len(self.kernel):
            code = (x.detach().flatten(1) > 0).float()  # (batch, units)
            self.kernel.add_((code @ code.T + (1 - code) @ (1 - code).T).double())
        return func(*args, **(kwargs or {}))


def naswot(model: nn.Module, inputs: Inputs) -> float:
    """inputs: a batch of 2 or more samples; the model in training mode, as at initialization. -inf where K is singular."""
    twin = copied(model, training=True)
    with torch.no_grad(), unfused(), _Watched(batch_size(inputs)) as watched:
        call(twin, inputs)
    return float(torch.linalg.slogdet(watched.kernel).logabsdet)
