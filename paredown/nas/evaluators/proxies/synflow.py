"""SynFlow (Tanaka et al., arXiv:2006.05467, eq. 6; as a proxy: Abdelfattah et al., arXiv:2101.08134): sum of dR/dw * w.

R is the sum of the outputs to an input of ones, with every weight replaced by its absolute value; batch norms hand their
input on. In float64, since a product over all layers leaves the range of float32. Returned as a logarithm.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from paredown.nas.evaluators.proxies.copied import copied, require_numbers
from paredown.task.batches import Inputs, apply_tensors, call, tensors


def synflow(model: nn.Module, inputs: Inputs) -> float:
    """inputs: floating-point; only the shape of one sample counts. -inf where no weight reaches the output."""
    require_numbers("synflow", inputs)
    ones = apply_tensors(inputs, lambda t: torch.ones_like(t[:1], dtype=torch.float64))
    twin = copied(model, training=False).double()
    for parameter in twin.parameters():
        parameter.data.abs_()
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    torch.stack([output.sum() for output in tensors(call(twin, ones))]).sum().backward()  # type: ignore[no-untyped-call]
    score = sum(float((p.grad * p.detach()).sum()) for p in twin.parameters() if p.grad is not None)
    return float(torch.tensor(score, dtype=torch.float64).log())
