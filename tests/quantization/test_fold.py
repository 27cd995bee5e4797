"""Batch-norm folding: the same function, under the same names, where it is possible; else nothing changes."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from paredown.graph.trace import trace
from paredown.quantization.fold import fold_batch_norms_
from paredown.quantization.nodes import name_of


def warm(model: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation mode, every parameter and statistic at a value of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.2)
    return model.double().eval()


def folded(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, int]:
    module = copy.deepcopy(trace(copy.deepcopy(model), x).module(check_guards=False))
    count = fold_batch_norms_(module)
    module.recompile()
    return module, count


def norms(module: fx.GraphModule) -> int:
    return sum(name_of(node) == "batch_norm" for node in module.graph.nodes)


LAYERS = {
    "conv1d": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 8)),
    "conv2d": (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (2, 3, 6, 6)),
    "same padding": (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)), (2, 3, 6, 6)),
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), (2, 4, 6, 6)),
    "not affine": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (2, 3, 6, 6)),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), (2, 2, 4, 4, 4)),
    "linear": (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (2, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_folded_layer_computes_the_same_to_1e_12(name: str) -> None:
    model, shape = LAYERS[name]
    x = torch.rand(shape, dtype=torch.float64)
    model = warm(model, x)
    module, count = folded(model, x)
    assert (count, norms(module)) == (1, 0)
    assert torch.allclose(module(x), model(x), rtol=1e-12, atol=1e-12)
    assert {"0.weight", "0.bias"} <= {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}


class Kept(nn.Module):
    """Batch norms that can't be folded: before the convolution, behind one that is read twice, behind a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.conv, self.after = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.linear, self.sequence = nn.Linear(4, 5), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.before(x))
        y = (self.after(y) + y).flatten(2).transpose(1, 2)  # (batch, 16, 4)
        out: Tensor = self.sequence(self.linear(y))
        return out


def test_what_cannot_be_folded_stays() -> None:
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    model = warm(Kept(), x)
    module, count = folded(model, x)
    assert (count, norms(module)) == (0, 3)
    assert torch.equal(module(x), model(x))


class Shared(nn.Module):
    """One convolution, called twice, each time with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.conv(self.first(self.conv(x))))
        return out


def test_a_shared_convolution_is_copied_for_each_batch_norm() -> None:
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    model = warm(Shared(), x)
    module, count = folded(model, x)
    assert (count, norms(module)) == (2, 0)
    assert torch.allclose(module(x), model(x), rtol=1e-12)


def test_frozen_weights_stay_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False).requires_grad_(False), nn.BatchNorm2d(4)).eval()
    module, _ = folded(model, torch.rand(2, 3, 6, 6))
    assert [p.requires_grad for n, p in module.named_parameters() if n.startswith("0.")] == [False, False]
