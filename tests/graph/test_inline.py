import torch
from torch import Tensor, nn

from paredown.graph.groups import dependency_groups
from paredown.graph.trace import trace


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x)
        with torch.autocast(device_type="cpu", enabled=False):
            y = self.b(x).relu()
            with torch.no_grad():
                mean = y.mean((1, 2, 3))
        return self.c(y), mean


X = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_regions_without_effect_leave_no_wrapper_and_the_same_outputs() -> None:
    model = Wrapped().eval()
    program = trace(model, X)
    assert not [node for node in program.graph.nodes if "wrap_with" in str(node.target)]
    assert not [node for node in program.graph.nodes if node.op == "get_attr"]
    for found, expected in zip(program.module()(X), model(X), strict=True):
        assert torch.equal(found, expected)


def test_a_program_without_wrappers_still_decomposes() -> None:
    model = Wrapped().eval()
    found = trace(model, X).run_decompositions().module()(X)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, model(X), strict=True))


def test_channels_inside_such_a_region_can_be_removed() -> None:
    groups = dependency_groups(Wrapped().eval(), X)
    assert {group.name for group in groups.groups} >= {"a"}
    assert not [barrier for barrier in groups.barriers if "wrap_with" in barrier.operator]
