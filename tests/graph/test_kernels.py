"""Kernels cropped to their centre: which can be, what is left, and that a checkpoint brings it back."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown.graph.equality import check_cut, masked
from paredown.graph.kernels import croppable_kernels
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut
from tests.conftest import SmallResNet, make_small_resnet


class Convolutions(nn.Module):
    """Inputs (batch, 2, 12, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 4, 5, padding=4, dilation=2)
        self.same = nn.Conv2d(4, 4, (1, 7), padding="same", groups=2)
        self.reflected = nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="reflect")
        self.tight = nn.Conv2d(4, 4, 3)
        self.short = nn.Conv2d(4, 4, 5, padding=1)
        self.even = nn.Conv2d(4, 4, 2)
        self.point = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reflected(self.same(self.wide(x)))
        return self.point(self.even(self.short(self.tight(x)))).flatten(1)


def inputs() -> Tensor:
    return torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(0))


def test_options_are_the_odd_sides_that_the_padding_allows() -> None:
    found = croppable_kernels(Convolutions().eval(), inputs())
    options = {kernel.layer: kernel.options for kernel in found.kernels}
    assert options == {"wide": (1, 3, 5), "same": (1, 3, 5, 7), "reflected": (1, 3), "short": (3, 5)}
    reasons = {barrier.where: barrier.reason for barrier in found.barriers}
    assert set(reasons) == {"tight", "even"}
    assert "larger output" in reasons["tight"]
    assert "no centre" in reasons["even"]


@pytest.mark.parametrize("sides", [{"wide": 3}, {"wide": 1, "same": 5, "reflected": 1, "short": 3}])
def test_a_cropped_layer_equals_the_original_with_its_outer_weights_at_zero(sides: dict[str, int]) -> None:
    model = Convolutions().eval()
    found = croppable_kernels(model, inputs())
    manifest = found.manifest(sides)
    cropped = cut(model, manifest)
    assert check_cut(model, cropped, manifest, found.readers, inputs()) < 1e-12
    assert torch.allclose(cropped(inputs()), masked(model, manifest, found.readers)(inputs()), atol=1e-6)
    assert not torch.allclose(cropped(inputs()), model(inputs()), atol=1e-3)
    for layer, side in sides.items():
        kernel = cropped.get_submodule(layer).weight.shape[2:]
        assert max(kernel) == side
        assert cropped.get_submodule(layer).kernel_size == tuple(kernel)


def test_crops_follow_one_another_and_stand_beside_cuts_of_channels(tmp_path: Path) -> None:
    model, x = make_small_resnet(), torch.randn(2, 1, 8, 8)
    found = croppable_kernels(model, x)
    assert {kernel.layer for kernel in found.kernels} >= {"stem.0", "block1.conv1", "block2.conv2"}
    channels = Manifest({"block1.conv1.weight": {0: (1, 3)}, "block1.conv2.weight": {1: (1, 3)}, **norms("block1.bn1", (1, 3))})
    both = cut(model, channels.beside(found.manifest({"block1.conv1": 1, "stem.0": 1})))
    assert both.block1.conv1.weight.shape == (2, 8, 1, 1)
    assert (both.block1.conv1.padding, both.block1.conv1.stride) == ((0, 0), (1, 1))
    again = cut(both, found.manifest({"block2.conv2": 1}))
    paredown.save_checkpoint(again, tmp_path / "c")
    loaded = paredown.load_checkpoint(tmp_path / "c", SmallResNet())
    assert torch.equal(loaded.eval()(x), again.eval()(x))


def norms(name: str, kept: tuple[int, ...]) -> dict[str, dict[int, tuple[int, ...]]]:
    return {f"{name}.{key}": {0: kept} for key in ("weight", "bias", "running_mean", "running_var")}


def test_protected_and_shared_layers_stay_whole() -> None:
    model = make_small_resnet()
    model.block1.conv1.weight = model.block1.conv2.weight
    found = croppable_kernels(model, torch.randn(2, 1, 8, 8), protect=("block2",))
    assert {kernel.layer for kernel in found.kernels} == {"stem.0"}
    reasons = {barrier.where: barrier.reason for barrier in found.barriers}
    assert "shared" in reasons["block1.conv1"]
    assert reasons["block2.conv1"] == "protected by the user"
