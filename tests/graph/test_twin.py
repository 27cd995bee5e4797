"""Twins: copies of a model with other weights, cut and masked for a while."""

import functools

import pytest
import torch
from torch import Tensor, nn

from paredown.graph.groups import dependency_groups
from paredown.graph.late import LateWeight
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import kept_values
from paredown.graph.twin import late_where_possible, light_twin, masking, on_demand, outputs, recut, runs, zeroed
from paredown.task.batches import first_samples


class Large(nn.Module):
    """Large weights in a convolution, one in groups, a linear layer, in none, and read through another layer; and a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(64, 512, 3), nn.Conv2d(512, 1024, 3, groups=16)
        self.wide, self.small = nn.Linear(1024, 512), nn.Linear(512, 4)
        self.bare = nn.Parameter(torch.randn(512, 512))

    def forward(self, x: Tensor) -> Tensor:
        h = self.grouped(self.conv(x).relu()).mean((2, 3))
        h = self.wide(h).relu() @ self.bare
        return self.small(h.relu()) + (h @ self.wide.weight).mean(1, keepdim=True)


REMOVED = {
    "conv.weight": {1: [1, 60]},
    "grouped.weight": {1: [3]},
    "wide.weight": {1: [0, 7, 900]},
    "bare": {0: [5, 6]},
    "small.weight": {1: [5]},
}


@pytest.fixture(params=["whole", "in parts"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether large weights have memory of their own and are made whole, as most are, or have not and are made by rows."""
    monkeypatch.setattr("paredown.graph.twin._LATE", 1 << 16)
    if request.param == "in parts":
        monkeypatch.setattr("paredown.graph.pools._OVERLAPPING", 1 << 17)
        monkeypatch.setattr("paredown.graph.late._PART", 1 << 15)
    return str(request.param)


def test_rows_of_very_large_weights_overlap(reading: str) -> None:
    twin = light_twin(Large().eval(), torch.randn(2, 64, 7, 7), 0, torch.float64, samples=2, late=True)
    large = {"conv.weight", "grouped.weight", "wide.weight", "bare"}
    assert set(twin.overlapping) == (large if reading == "in parts" else set())
    assert all(len(twin.weights[name].flatten(1).unique(dim=0)) == len(twin.weights[name]) for name in large)


def test_masking_equals_zeros_in_the_weights(reading: str) -> None:
    model, x = Large().eval(), torch.randn(2, 64, 7, 7)
    twin = light_twin(model, x, 0, torch.float64, samples=2, late=True)
    indices = {name: {d: torch.tensor(gone) for d, gone in dimensions.items()} for name, dimensions in REMOVED.items()}
    whole = outputs(twin.model, twin.batches[0], twin.dtype)[0]
    with masking(twin, indices):
        masked = outputs(twin.model, twin.batches[0], twin.dtype)[0]
    assert torch.equal(outputs(twin.model, twin.batches[0], twin.dtype)[0], whole)
    by_hand = light_twin(model, x, 0, torch.float64, samples=2)
    for name, dimensions in indices.items():
        by_hand.tensors[name].data = zeroed(by_hand.weights[name], dimensions)
    expected = outputs(by_hand.model, twin.batches[0], torch.float64)[0]
    assert torch.allclose(masked, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(whole, expected, rtol=1e-3)


def test_a_large_weight_is_made_when_it_is_read() -> None:
    model, x = Large().eval(), torch.randn(2, 64, 7, 7)
    twin, made = light_twin(model, x, 0, torch.float64, samples=2, late=True), list[str]()

    def halved(name: str, rows: Tensor | None) -> Tensor:
        made.append(name)
        return (twin.weights[name] if rows is None else twin.weights[name][rows]) / 2

    names = ("conv.weight", "wide.weight", "bare", "small.weight")
    with on_demand(twin, {name: LateWeight(twin.weights[name].shape, functools.partial(halved, name)) for name in names}):
        assert made == ["small.weight"]
        found = outputs(twin.model, twin.batches[0], twin.dtype)[0]
        assert made == ["small.weight", "conv.weight", "wide.weight", "bare", "wide.weight"]
        assert twin.tensors["bare"].untyped_storage().nbytes() < 100
    for name in names:
        assert twin.tensors[name].data_ptr() == twin.weights[name].data_ptr()
        twin.tensors[name].data = twin.weights[name] / 2
    assert torch.equal(outputs(twin.model, twin.batches[0], twin.dtype)[0], found)


class Tied(nn.Module):
    """A table that is the head too, and a convolution. Inputs: tokens (batch, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head, self.conv = nn.Embedding(3000, 100), nn.Linear(100, 3000), nn.Conv1d(100, 1000, 5, padding=2)
        self.head.weight = self.table.weight
        self.back = nn.Linear(1000, 100, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        return self.head(h + self.back(self.conv(h.transpose(1, 2)).transpose(1, 2).relu()))


def test_a_cut_that_is_made_by_rows_is_the_cut(reading: str) -> None:
    model, x = Tied().eval(), torch.tensor([[5, 1, 5, 2999], [0, 7, 8, 9]])
    kept, inner = tuple(range(0, 100, 2)), tuple(range(3, 1000, 3))
    slices: dict[str, dict[int, tuple[int, ...]]] = {
        "table.weight": {1: kept},
        "conv.weight": {0: inner, 1: kept},
        "conv.bias": {0: inner},
        "back.weight": {0: kept, 1: inner},
    }
    manifest = Manifest(kept=slices, scaled={"conv.weight": {0: tuple(1 + i / 1000 for i in range(len(inner)))}})
    twin = light_twin(model, x, 0, torch.float64, samples=2, late=True)
    with recut(twin, manifest):
        assert twin.tensors["table.weight"].untyped_storage().nbytes() < 100
        found = outputs(twin.model, twin.batches[0], twin.dtype)[0]
    by_hand = light_twin(model, x, 0, torch.float64, samples=2)
    for name, weight in by_hand.weights.items():
        by_hand.tensors[name].data = kept_values(name, weight, manifest)
    assert torch.allclose(found, outputs(by_hand.model, twin.batches[0], torch.float64)[0], rtol=1e-12, atol=1e-12)


class Wrapped(nn.Module):
    """Its large weight is read by a class that no operation of torch sees, and one width stands in a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 1600), nn.Linear(1600, 4, bias=False)
        self.w = nn.Parameter(torch.randn(1600, 1600))

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.linear(self.first(x).relu(), nn.Parameter(self.w))
        return self.last((h * self.w.shape[0] ** -0.5).relu())


def test_what_is_read_otherwise_is_no_late_weight() -> None:
    """Nothing stands in its place when the cut and the masked model are compared: a cut that changes the factor is found."""
    model, x = Wrapped().eval(), torch.randn(2, 8)
    tried = late_where_possible(light_twin(model, x, 0, torch.float32, samples=2))
    assert tried is not None and not tried.late
    sliced = {part.tensor for group in dependency_groups(model, x).groups for part in group.slices if part.dimension == 0}
    assert "w" not in sliced and "first.weight" in sliced


def test_a_light_twin_runs_and_leaves_the_model_alone() -> None:
    model = Large().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert runs(light_twin(model, torch.randn(2, 64, 40, 40), 0, torch.float32, samples=1, side=16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_first_samples_leaves_what_has_no_batch() -> None:
    inputs = {"x": torch.ones(5, 3), "table": torch.ones(4), "count": torch.tensor(5)}
    few = first_samples(inputs, 2)
    assert isinstance(few, dict)
    assert [tuple(few[name].shape) for name in inputs] == [(2, 3), (4,), ()]
