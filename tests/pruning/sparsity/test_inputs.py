"""Rows times the weight's matrices are what the layer computes, so norms and products are those of the layer's own inputs."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import BatchError, NotFiniteError, RecipeError
from paredown.pruning.sparsity import inputs as module_under_test
from paredown.pruning.sparsity.inputs import gram, layer_rows, mean_over_rows, samples, square_sum
from paredown.pruning.sparsity.layers import Layer, as_matrices, sparse_layers
from paredown.task.task import Task

LAYERS: list[tuple[Layer, tuple[int, ...]]] = [
    (nn.Linear(6, 4, bias=False), (3, 5, 6)),
    (nn.Conv1d(4, 6, 3, padding=1, bias=False), (3, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 2), dilation=(2, 1), groups=2, bias=False), (3, 4, 9, 8)),
    (nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect", groups=4, bias=False), (3, 4, 7, 7)),
    (nn.Conv3d(2, 4, 2, bias=False), (2, 2, 4, 5, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_rows_times_weight_is_the_output(
    monkeypatch: pytest.MonkeyPatch, layer: Layer, shape: tuple[int, ...], at_once: int
) -> None:
    monkeypatch.setattr(module_under_test, "_VALUES_AT_ONCE", at_once)
    x = torch.randn(shape)
    rows = torch.cat(list(layer_rows(x, layer)), 1)  # (groups, rows, columns)
    weight = as_matrices(layer.weight.detach(), layer).flatten(2)  # (groups, out, columns)
    found = (rows @ weight.transpose(1, 2)).movedim(0, 1).flatten(1)  # (rows, out)
    expected = layer(x).detach()
    expected = expected.flatten(0, -2) if isinstance(layer, nn.Linear) else expected.movedim(1, -1).flatten(0, -2)
    assert torch.allclose(found, expected, atol=1e-5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(input=self.first(x).relu())


def test_statistics_are_those_of_all_batches_together() -> None:
    net, x = Net(), torch.randn(10, 4)
    layers = sparse_layers(net, ["idle"])
    batches = [(part, None) for part in x.split([1, 6, 3])]
    norms = mean_over_rows(net, layers, batches, square_sum)
    grams = mean_over_rows(net, layers, batches, gram)
    hidden = net.first(x).relu().detach().double()
    assert torch.allclose(norms[0][0], x.double().square().mean(0)) and torch.allclose(norms[1][0], hidden.square().mean(0))
    assert torch.allclose(grams[1][0], hidden.T @ hidden / 10)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_are_gone_afterwards_and_after_an_exception() -> None:
    net = Net().train()
    layers = sparse_layers(net, ["idle"])
    mean_over_rows(net, layers, [(torch.randn(2, 4), None)], gram)
    assert hooks(net) == 0 and net.training
    with pytest.raises(BatchError, match="must fit the model"):
        mean_over_rows(net, layers, [(torch.randn(2, 5), None)], gram)
    assert hooks(net) == 0 and net.training


def test_layer_that_never_runs_is_named() -> None:
    net = Net()
    with pytest.raises(RecipeError, match=r"idle.*protect it"):
        mean_over_rows(net, sparse_layers(net), [(torch.randn(2, 4), None)], square_sum)


def test_inputs_that_are_not_finite_are_an_error() -> None:
    net = Net()
    with pytest.raises(NotFiniteError, match="first"):
        mean_over_rows(net, sparse_layers(net, ["idle"]), [(torch.full((2, 4), torch.inf), None)], square_sum)


def test_weight_of_two_modules_sees_the_inputs_of_both() -> None:
    one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    other.weight = one.weight
    net, x = nn.Sequential(one, nn.ReLU(), other), torch.randn(5, 3)
    (norms,) = mean_over_rows(net, sparse_layers(net), [(x, None)], square_sum)
    both = torch.cat([x, one(x).detach().relu()])
    assert torch.allclose(norms[0], both.double().square().mean(0), atol=1e-6)


def test_as_many_samples_as_asked_for(pattern_task: Task) -> None:
    def sizes(found: Iterator[tuple[Tensor, Tensor]]) -> list[tuple[int, int]]:
        return [(len(x), len(y)) for x, y in found]

    assert sizes(samples(pattern_task, 100)) == [(64, 64), (36, 36)]  # type: ignore[arg-type]  # tensors they are
    assert sizes(samples(pattern_task, 128)) == [(64, 64), (64, 64)]  # type: ignore[arg-type]  # tensors they are
    assert len(list(itertools.islice(samples(pattern_task, 10**6), 99))) == 10
