"""Residual branches: which are found, that dropping one equals zeroing what it adds, and that nothing of it stays."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import CheckpointError, SurgeryError
from paredown.graph.branches import Branches, residual_branches
from paredown.graph.dropped import Dropped
from paredown.graph.equality import check_cut, masked
from paredown.graph.groups import dependency_groups
from paredown.graph.manifest import Manifest, manifest_of
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs, count_parameters
from paredown.task.batches import Inputs
from tests.conftest import make_small_resnet

DIGITS = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
Case = tuple[nn.Module, Inputs, list[str]]


def small() -> Case:
    return make_small_resnet(), DIGITS, ["block1"]


def resnet() -> Case:
    """torchvision writes into what a branch returns, and runs one ReLU twice in a block."""
    models = pytest.importorskip("torchvision.models")
    return models.ResNet(models.resnet.BasicBlock, [2, 1, 1, 2], num_classes=7), IMAGE, ["layer1.0", "layer1.1", "layer4.1"]


def vit() -> Case:
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    model = vision.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=7)
    layers = [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)]
    return model, IMAGE, [f"{layer}:{i}" for layer in layers for i in (0, 1)]


def timm_vit() -> Case:
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 7}
    model = timm.models.VisionTransformer(**options)
    return model, IMAGE, ["blocks.0:0", "blocks.0:1", "blocks.1:0", "blocks.1:1"]


def bert() -> Case:
    """Normalized after the addition, so that a branch ends in the middle of a module."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        attn_implementation="eager",
    )
    inputs = {"input_ids": torch.arange(15).view(3, 5), "attention_mask": torch.ones(3, 5, dtype=torch.int64)}
    layers = [f"encoder.layer.{i}" for i in (0, 1)]
    model = transformers.BertModel(config, add_pooling_layer=False)
    return model, inputs, [f"{layer}{end}" for layer in layers for end in (".attention", "")]


CASES: list[Callable[[], Case]] = [small, resnet, vit, timm_vit, bert]


def dropped(model: nn.Module, inputs: Inputs, names: list[str]) -> tuple[Branches, Manifest]:
    found = residual_branches(model, inputs)
    return found, found.manifest(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_dropped_branches_equal_zeroed_ones_and_cost_nothing(case: Callable[[], Case]) -> None:
    torch.manual_seed(0)
    model, inputs, names = case()
    model.eval()
    found, manifest = dropped(model, inputs, names)
    assert [branch.name for branch in found.branches] == names
    pruned = cut(model, manifest)
    assert check_cut(model, pruned, manifest, (), inputs) <= 1e-9
    gone = {name for branch in found.branches for name in branch.parameters}
    assert gone and {n for n, _ in pruned.named_parameters()} == {n for n, _ in model.named_parameters()} - gone
    saved = [count_macs(model, inputs) - count_macs(cut(model, b.manifest()), inputs) for b in found.branches]
    assert min(saved) > 0 and count_macs(pruned, inputs) == count_macs(model, inputs) - sum(saved)
    assert type(pruned) is type(model) and manifest_of(pruned) == manifest


def test_a_dropped_branch_adds_nothing_at_any_batch_size() -> None:
    model, inputs, names = vit()
    _, manifest = dropped(model.eval(), inputs, names)
    pruned, zeroed = cut(model, manifest), masked(model, manifest, ())
    for n in (1, 2, 5):
        x = torch.randn(n, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(pruned(x), zeroed(x))


def test_what_changes_the_shape_or_is_protected_or_shared_is_no_branch() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x)
            return self.c(self.b(x + self.a(x)) + self.b(x))

    assert not residual_branches(Shared().eval(), TOKENS).branches
    model = make_small_resnet()
    found = residual_branches(model, DIGITS, protect=("block1.conv1",))
    assert not found.branches and [b.operator for b in found.barriers] == ["protect"]


def test_a_branch_within_a_branch_goes_with_it() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return x + self.b(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = Inner(), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.inner(x))

    model = Outer().eval()
    found = residual_branches(model, TOKENS)
    assert {b.parameters for b in found.branches} >= {("inner.b.weight", "inner.b.bias")}
    manifest = found.manifest([b.name for b in found.branches])
    assert [part.module for part in manifest.dropped] == ["inner"]
    assert check_cut(model, cut(model, manifest), manifest, (), TOKENS) <= 1e-9
    assert count_parameters(cut(model, manifest)) == 16 * 3 + 3


def test_a_wrong_stand_in_is_found() -> None:
    model = make_small_resnet()
    wrong = Manifest(dropped=(Dropped("block1.bn2"),))  # hands on what it gets: not nothing
    with pytest.raises(SurgeryError, match="must equal the masked original"):
        check_cut(model, cut(model, wrong), wrong, (), DIGITS)
    with pytest.raises(SurgeryError, match=r"drop modules of the model.*fresh, uncut model"):
        cut(model, Manifest(dropped=(Dropped("block7"),)))


def test_channels_are_removed_before_and_after_a_branch_is_dropped() -> None:
    model = make_small_resnet()
    groups = dependency_groups(model, DIGITS)
    thin = cut(model, groups.manifest([g >= 3 for g in (torch.arange(group.size).numpy() for group in groups.groups)]))
    shallow = cut(thin, dropped(thin, DIGITS, ["block1"])[1])
    again = dependency_groups(shallow, DIGITS)
    keep = [torch.arange(group.size).ge(1).numpy() for group in again.groups]
    assert check_cut(shallow, cut(shallow, again.manifest(keep)), again.manifest(keep), again.consumers, DIGITS) <= 1e-9
    last, whole = cut(shallow, again.manifest(keep)), manifest_of(cut(shallow, again.manifest(keep)))
    assert whole is not None and Manifest.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    rebuilt = cut(model, whole).state_dict()
    assert all(torch.equal(rebuilt[name], value) for name, value in last.state_dict().items())


@pytest.mark.parametrize("damage", [{"outputs": [99]}, {"module": 3}, {"whole": 1}, {"more": 0}])
def test_a_manifest_with_a_malformed_dropped_module_is_refused(damage: dict[str, Any]) -> None:
    data = Manifest(dropped=(Dropped("a", (4,)),)).to_dict()
    data["dropped"][0] |= damage
    with pytest.raises(CheckpointError, match=r"for each module that was dropped.*save the checkpoint again"):
        Manifest.from_dict(data)
