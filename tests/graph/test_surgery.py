"""Surgery: the cut model's class, weights and attributes; composition; errors."""

import copy

import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import SurgeryError
from paredown.graph.groups import dependency_groups
from paredown.graph.manifest import Manifest, manifest_of
from paredown.graph.surgery import alias, copy_with, cut, named_tensors
from tests.graph import nets


def test_a_cut_conv_has_sliced_weights_and_true_attributes() -> None:
    conv = nn.Conv2d(4, 6, 3)
    result = cut(conv, Manifest({"weight": {0: (0, 2, 5), 1: (1, 3)}, "bias": {0: (0, 2, 5)}}))
    assert isinstance(result, nn.Conv2d) and (result.in_channels, result.out_channels) == (2, 3)
    assert torch.equal(result.weight, conv.weight[[0, 2, 5]][:, [1, 3]])
    assert result.bias is not None and conv.bias is not None and torch.equal(result.bias, conv.bias[[0, 2, 5]])
    assert conv.weight.shape == (6, 4, 3, 3)


@pytest.mark.parametrize(
    ("layer", "kept", "expected"),
    [
        (nn.Linear(4, 3), {"weight": {1: (0, 3)}}, {"in_features": 2, "out_features": 3}),
        (nn.BatchNorm2d(4), {n: {0: (1, 2)} for n in ("weight", "bias", "running_mean", "running_var")}, {"num_features": 2}),
        (nn.BatchNorm2d(4, affine=False), {n: {0: (1,)} for n in ("running_mean", "running_var")}, {"num_features": 1}),
        (nn.LayerNorm(4), {"weight": {0: (0, 1, 2)}, "bias": {0: (0, 1, 2)}}, {"normalized_shape": (3,)}),
        (nn.Embedding(9, 4), {"weight": {1: (0, 1)}}, {"num_embeddings": 9, "embedding_dim": 2}),
        (nn.PReLU(4), {"weight": {0: (3,)}}, {"num_parameters": 1}),
        (
            nn.ConvTranspose2d(4, 6, 2),
            {"weight": {0: (0,), 1: (2, 3)}, "bias": {0: (2, 3)}},
            {"in_channels": 1, "out_channels": 2},
        ),
        (nn.Conv2d(4, 8, 1, groups=4), {"weight": {0: (0, 1, 6, 7)}, "bias": {0: (0, 1, 6, 7)}}, {"groups": 2, "in_channels": 2}),
        (nn.Conv2d(4, 8, 1, groups=4), {"weight": {0: (0, 2, 4, 6)}, "bias": {0: (0, 2, 4, 6)}}, {"groups": 4, "in_channels": 4}),
    ],
)
def test_attributes_of_torchs_layers_follow_their_weights(
    layer: nn.Module, kept: dict[str, dict[int, tuple[int, ...]]], expected: dict[str, object]
) -> None:
    result = cut(layer, Manifest(kept))
    assert {name: getattr(result, name) for name in expected} == expected


def test_requires_grad_is_kept_and_the_cut_model_trains_and_copies() -> None:
    model, x = nets.dense()
    assert isinstance(model.a, nn.Conv2d)
    model.a.weight.requires_grad_(False)
    groups = dependency_groups(model, (x,))
    keep = groups.all_kept()
    keep[1] = keep[1] & False
    keep[1][0] = True
    pruned = cut(model, groups.manifest(keep))
    assert not pruned.get_parameter("a.weight").requires_grad
    pruned.train()(x).sum().backward()
    assert pruned.get_parameter("b.weight").grad is not None
    assert manifest_of(copy.deepcopy(pruned)) == groups.manifest(keep)


def test_cutting_twice_composes_relative_to_the_original() -> None:
    model, x = nets.flattened()
    first = dependency_groups(model, (x,))
    keep = first.all_kept()
    keep[0][::2] = False
    once = cut(model, first.manifest(keep))
    second = dependency_groups(once, (x,))
    keep = second.all_kept()
    keep[0][:1] = False
    keep[1][3:] = False
    twice = cut(once, second.manifest(keep))
    manifest = manifest_of(twice)
    assert manifest is not None and manifest.kept["a.weight"][0] == (3, 5, 7)
    directly = cut(model, manifest)
    assert all(torch.equal(a, b) for a, b in zip(directly.state_dict().values(), twice.state_dict().values(), strict=True))


def test_no_second_copy_of_what_is_cut_away_is_kept() -> None:
    result = cut(nn.Linear(100, 50), Manifest({"weight": {0: (1,)}, "bias": {0: (1,)}}))
    assert result.get_parameter("weight").untyped_storage().nbytes() == 400


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"other": {0: (0,)}}, "name parameters"),
        ({"weight": {5: (0,)}}, "dimension 5"),
        ({"weight": {0: (9,)}}, "indices that exist"),
    ],
)
def test_a_manifest_of_another_model_is_refused(kept: dict[str, dict[int, tuple[int, ...]]], message: str) -> None:
    with pytest.raises(SurgeryError, match=f"{message}.*fresh, uncut model"):
        cut(nn.Linear(3, 3), Manifest(kept))


def test_a_model_that_cannot_be_copied_is_named_as_such() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.cache: Tensor = self.layer.weight * 2

    with pytest.raises(SurgeryError, match=r"copyable.*computed tensors"):
        cut(Cached(), Manifest())


class Referring(nn.Module):
    """Holds its parts in a plain list too, two of which share a table, and copies one part in a way of its own."""

    class Odd(nn.Linear):
        def __deepcopy__(self, memo: dict[int, object]) -> "Referring.Odd":
            copied = Referring.Odd(self.in_features, self.out_features)
            copied.note = "copied by itself"
            return copied

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.odd = nn.Linear(4, 4), nn.Linear(4, 4), Referring.Odd(4, 4)
        self.first.table = self.second.table = [1, 2]
        self.parts = [self.first, self.second]

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.parts[1](self.parts[0](x)))


def test_a_copy_refers_to_its_own_parts_as_the_original_to_its_own() -> None:
    model = Referring()
    copied = copy_with(model, {name: alias(tensor) for name, tensor in named_tensors(model).items()})
    assert isinstance(copied, Referring)
    assert copied.parts == [copied.first, copied.second] and copied.first is not model.first
    assert copied.first.table is copied.second.table and copied.first.table is not model.first.table
    assert copied.odd.note == "copied by itself"
    assert copied.first._forward_hooks is not model.first._forward_hooks


def test_a_copy_has_the_attributes_that_deepcopy_gives() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=(2, 2))
    )
    copied = copy_with(model, {name: alias(tensor) for name, tensor in named_tensors(model).items()})
    for mine, theirs in zip(copied.modules(), copy.deepcopy(model).modules(), strict=True):
        assert type(mine) is type(theirs) and vars(mine).keys() == vars(theirs).keys()
        tables = ("_parameters", "_buffers", "_modules")
        assert all(vars(mine)[key] == value for key, value in vars(theirs).items() if key not in tables)
        assert all(vars(mine)[key].keys() == vars(theirs)[key].keys() for key in tables)


def test_hooks_of_the_copy_are_its_own() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    copied = copy_with(model, {name: alias(tensor) for name, tensor in named_tensors(model).items()})
    copied[0].register_forward_hook(lambda *_: torch.zeros(1))
    assert copied(torch.ones(2, 4)).numel() == 1 and model(torch.ones(2, 4)).numel() == 8
