"""NASWOT (Mellor et al., arXiv:2006.04647, section 3): how differently the ReLUs answer to the samples of one batch.

c_i: for each ReLU output of sample i, 1 where it is positive. K_ij = the number of places where c_i and c_j agree; log |det K|.
"""

from typing import Any

import torch
from torch import Tensor, nn

from paredown.nas.evaluators.proxies.copied import copied


def naswot(model: nn.Module, inputs: Tensor) -> float:
    """inputs (batch, ...), 2 or more samples; the model in training mode, as at initialization. -inf where K is singular."""
    kernel = torch.zeros(len(inputs), len(inputs), dtype=torch.float64)

    def watch(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        code = (output.detach().flatten(1) > 0).float()  # (batch, units)
        kernel.add_((code @ code.T + (1 - code) @ (1 - code).T).double())

    twin = copied(model, training=True)
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(watch)
    with torch.no_grad():
        twin(inputs)
    return float(torch.linalg.slogdet(kernel).logabsdet)
