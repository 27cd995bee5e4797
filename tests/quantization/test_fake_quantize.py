"""The operator in autograd and in exported graphs."""

import pytest
import torch
from torch import Tensor, nn

from paredown.graph.fake_quantize import fake_quantize


def grid(scale: float, zero_point: int = 0) -> tuple[Tensor, Tensor]:
    return torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)


def test_halves_round_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert fake_quantize(x, *grid(1.0), -1, -127, 127).tolist() == [0, 2, 2, 0, -2]


def test_gradient_passes_inside_the_grid_and_stops_outside() -> None:
    x = torch.tensor([-1.0, 0.2, 24.0, 26.0, 255.4, 300.0], requires_grad=True)
    fake_quantize(x, *grid(0.1, 10), -1, 0, 255).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1, 0, 0, 0]


def test_its_input_is_not_changed_and_its_memory_format_is_kept() -> None:
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    before = x.clone()
    y = fake_quantize(x, *grid(0.1), -1, -127, 127)
    assert torch.equal(x, before)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_type_of_the_input_is_kept(kind: torch.dtype) -> None:
    assert fake_quantize(torch.ones(3, dtype=kind), *grid(0.25), -1, 0, 255).dtype == kind


def test_it_stands_whole_in_an_exported_graph_of_a_model_that_trains() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            scale, zero_point = grid(0.1)
            return x @ torch.ops.paredown.fake_quantize(self.weight, scale, zero_point, -1, -127, 127)

    program = torch.export.export(Rounded(), (torch.randn(2, 4),))
    assert torch.ops.paredown.fake_quantize.default in [node.target for node in program.graph.nodes]


def test_torch_finds_the_operator_consistent() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    torch.library.opcheck(fake_quantize, (x, torch.rand(5) + 0.1, torch.zeros(5, dtype=torch.int32), 1, -127, 127))
    assert x.grad is None
