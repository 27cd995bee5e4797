"""The check of a cut against the masked original: planted errors are found."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paredown.core.errors import SurgeryError
from paredown.graph import twin
from paredown.graph.equality import check_cut, masked
from paredown.graph.groups import Groups, dependency_groups
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut
from tests.conftest import SmallResNet

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prepared(small_resnet: SmallResNet) -> tuple[SmallResNet, Groups, Manifest]:
    groups = dependency_groups(small_resnet, X)
    return small_resnet, groups, groups.manifest([np.arange(group.size) % 3 > 0 for group in groups.groups])


def test_the_masked_model_has_full_size_and_zeros_in_its_consumers(prepared: tuple[SmallResNet, Groups, Manifest]) -> None:
    model, groups, manifest = prepared
    result = masked(model, manifest, groups.consumers)
    weight = result.get_parameter("block1.conv2.weight")
    assert weight.shape == model.block1.conv2.weight.shape
    assert not weight[:, [0, 3, 6]].any() and bool((weight[:, [1, 2, 4, 5, 7]] != 0).all())
    assert bool((model.block1.conv2.weight != 0).all())


def test_the_cut_model_gives_the_masked_models_outputs(prepared: tuple[SmallResNet, Groups, Manifest]) -> None:
    model, groups, manifest = prepared
    with torch.no_grad():
        found, expected = cut(model, manifest)(X), masked(model, manifest, groups.consumers)(X)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, model(X), atol=1e-3)


def test_other_indices_in_the_consumer_than_in_the_producer_are_found(prepared: tuple[SmallResNet, Groups, Manifest]) -> None:
    model, groups, manifest = prepared
    wrong = Manifest({**manifest.kept, "head.weight": {1: tuple(range(len(manifest.kept["head.weight"][1])))}})
    with pytest.raises(SurgeryError, match="must equal the masked original"):
        check_cut(model, cut(model, wrong), wrong, groups.consumers, X)


def test_a_zero_bias_hides_nothing(prepared: tuple[SmallResNet, Groups, Manifest]) -> None:
    model, groups, manifest = prepared
    nn.init.zeros_(model.block1.bn1.bias)
    bias = "block1.bn1.bias"
    wrong = Manifest({**manifest.kept, bias: {0: tuple(range(len(manifest.kept[bias][0])))}})
    with pytest.raises(SurgeryError, match="must equal the masked original"):
        check_cut(model, cut(model, wrong), wrong, groups.consumers, X)


def test_a_cut_that_does_not_run_is_found(prepared: tuple[SmallResNet, Groups, Manifest]) -> None:
    model, groups, manifest = prepared
    wrong = Manifest({name: kept for name, kept in manifest.kept.items() if name != "block1.bn1.bias"})
    with pytest.raises(SurgeryError, match="must run"):
        check_cut(model, cut(model, wrong), wrong, groups.consumers, X)


def test_weights_that_are_not_slices_are_found(prepared: tuple[SmallResNet, Groups, Manifest]) -> None:
    model, groups, manifest = prepared
    pruned = cut(model, manifest)
    pruned.get_parameter("head.bias").data += 1
    with pytest.raises(SurgeryError, match=r"slices of the original's, got head\.bias"):
        check_cut(model, pruned, manifest, groups.consumers, X)


def test_neither_model_is_touched_and_the_default_type_is_restored(prepared: tuple[SmallResNet, Groups, Manifest]) -> None:
    model, groups, manifest = prepared
    pruned = cut(model, manifest).train()
    states = [{n: v.clone() for n, v in m.state_dict().items()} for m in (model, pruned)]
    check_cut(model, pruned, manifest, groups.consumers, X)
    assert pruned.training and torch.get_default_dtype() is torch.float32
    for m, state in zip((model, pruned), states, strict=True):
        assert all(torch.equal(v, state[n]) and v.dtype == state[n].dtype for n, v in m.state_dict().items())


def test_a_model_that_insists_on_float32_is_compared_in_float32() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)).float())

    model, x = Single(), torch.randn(2, 4)
    groups = dependency_groups(model, x)
    manifest = groups.manifest([np.arange(8) < 5])
    assert [group.name for group in groups.groups] == ["a"]
    assert check_cut(model, cut(model, manifest), manifest, groups.consumers, x) <= 1e-4


class ReadsWeights(nn.Module):
    """One layer is called, the weight of the other is read; both are large enough to be made only when they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.head = nn.Linear(600, 600), nn.Linear(600, 600), nn.Linear(600, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.linear(self.called(x).relu(), self.read.weight).relu())


@pytest.mark.parametrize("planted", [False, True])
def test_a_large_model_is_checked_without_copies_of_its_weights(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "LARGE", 1000)
    monkeypatch.setattr(twin, "random_twin", None)  # its copies wouldn't fit
    for model in (
        nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 3)),
        ReadsWeights(),
    ):
        x = torch.randn(3, 600)
        groups = dependency_groups(model, x)
        manifest = groups.manifest([np.arange(group.size) % 3 > 0 for group in groups.groups])
        assert len(groups.groups) == 2
        if planted:
            name, kept = next((name, kept) for name, kept in manifest.kept.items() if 1 in kept)
            manifest = Manifest({**manifest.kept, name: {**kept, 1: tuple(range(len(kept[1])))}})
            with pytest.raises(SurgeryError, match="must equal the masked original"):
                check_cut(model, cut(model, manifest), manifest, groups.consumers, x)
        else:
            assert check_cut(model, cut(model, manifest), manifest, groups.consumers, x) <= 1e-9


def test_the_weights_of_a_large_model_are_in_float64_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "LARGE", 1000)
    found = twin.full_twin(nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 600)), torch.randn(3, 600), 0)
    rows = torch.cat([weight for weight in found.weights.values() if weight.dim() == 2])
    assert len(found.batches) == 2 and rows.dtype is torch.float64
    assert len(torch.unique(rows, dim=0)) == len(rows) and torch.unique(rows[:600]).numel() > 250_000
