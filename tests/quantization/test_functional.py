"""In-place operators become functional where nothing else sees the memory they change."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.steps import Quantize
from paredown.graph.trace import trace
from paredown.quantization.functional import functionalize_, is_inplace
from paredown.quantization.static import quantize_model
from paredown.task.task import Task


def functional(model: nn.Module, x: Tensor) -> tuple[nn.Module, int, int]:
    module = trace(model, x).module(check_guards=False)
    count = functionalize_(module.graph)
    module.recompile()
    return module, count, sum(is_inplace(node) for node in module.graph.nodes)


class Fresh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2 - 1
        F.relu_(y)  # the result is not used, the memory is
        z = y + x
        z += y
        return F.hardtanh_(z, 0.0, 1.0) + y


def test_results_are_read_by_everything_that_comes_after() -> None:
    x = torch.randn(4, 5)
    module, count, left = functional(Fresh(), x)
    assert (count, left) == (3, 0)
    assert torch.equal(module(x), Fresh()(x))


class Aliased(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        row = y[0]
        y.add_(1.0)  # changes row too
        flat = y.view(-1)
        flat.mul_(3.0)  # changes y too
        return y + row


class Chunked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        first, _ = y.chunk(2, 1)
        first.mul_(3.0)  # changes y too
        return y


@pytest.mark.parametrize(("model", "places"), [(Aliased(), 2), (Chunked(), 1)])
def test_aliased_memory_is_left_alone(model: nn.Module, places: int) -> None:
    x = torch.randn(4, 6)
    module, count, left = functional(model, x)
    assert (count, left) == (0, places)
    assert torch.equal(module(x), model(x))


class Dropped(nn.Module):
    """As torchvision's EfficientNet ends: what is dropped in place is a view of what was pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(self.features(x).relu().mean((2, 3), keepdim=True), 1))
        return out


def test_a_layer_behind_a_dropout_in_place_is_quantized_and_the_dropout_drops_in_training() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    task = Task(Dropped().eval(), (x,), [(x, x)], [(x, x)], loss=lambda o, t: o.mean(), metric=lambda o, t: o.mean(1))
    model = quantize_model(task.model, task, Quantize(), reduced=False)
    assert {"features@0:weight", "classifier/1@0:weight", "classifier/1@0:input"} <= {*model.quantizers}, list(model.quantizers)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))
