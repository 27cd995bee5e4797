"""Small representatives of the zoo (benchmarks/zoo runs all of it): cut at two ratios, each cut equals the masked original."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.zoo import own
from benchmarks.zoo.child import early_end
from benchmarks.zoo.cuts import RATIOS, cut_to
from paredown.graph.groups import dependency_groups
from paredown.measure.cost import count_macs
from paredown.task.batches import Inputs

IMAGE = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Case = tuple[nn.Module, Inputs]


def residual() -> Case:
    models = pytest.importorskip("torchvision.models")
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7), IMAGE


def dense() -> Case:
    models = pytest.importorskip("torchvision.models")
    return models.DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=16, bn_size=2, num_classes=7), IMAGE


def shuffle() -> Case:
    models = pytest.importorskip("torchvision.models")
    return models.ShuffleNetV2([1, 2, 1], [16, 16, 32, 64, 64], num_classes=7), IMAGE


def squeeze_excite() -> Case:
    module = pytest.importorskip("torchvision.models.mobilenetv3")
    rows = [(16, 3, 32, 24, True, "RE", 2, 1), (24, 5, 64, 24, True, "HS", 1, 1)]
    settings = [module.InvertedResidualConfig(*row, width_mult=1.0) for row in rows]
    return module.MobileNetV3(settings, last_channel=64, num_classes=7), IMAGE


def fire() -> Case:
    module = pytest.importorskip("torchvision.models.squeezenet")
    return nn.Sequential(nn.Conv2d(3, 24, 3), module.Fire(24, 8, 16, 16), module.Fire(32, 8, 12, 20), nn.Conv2d(32, 7, 1)), IMAGE


def inception() -> Case:
    module = pytest.importorskip("torchvision.models.googlenet")
    parts = (nn.Conv2d(3, 24, 3, stride=2), module.Inception(24, 8, 12, 16, 4, 8, 8), module.Inception(40, 8, 12, 16, 4, 8, 8))
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 7)), IMAGE


def grouped() -> Case:
    module = pytest.importorskip("torchvision.models.regnet")
    parameters = module.BlockParams([1, 2], [32, 64], [16, 16], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return module.RegNet(parameters, num_classes=7), IMAGE


def convnext() -> Case:
    module = pytest.importorskip("torchvision.models.convnext")
    return module.ConvNeXt([module.CNBlockConfig(24, 32, 1), module.CNBlockConfig(32, None, 1)], num_classes=7), IMAGE


def unet() -> Case:
    return own.UNet(width=8), IMAGE


def two_inputs() -> Case:
    return own.two_inputs()


def split_attention() -> Case:
    layers = pytest.importorskip("timm.layers")
    body = (nn.Conv2d(3, 16, 3), layers.SplitAttn(16, 24, groups=2, norm_layer=nn.BatchNorm2d), nn.Conv2d(24, 7, 1))
    return nn.Sequential(*body), IMAGE


def split_by_attribute() -> Case:
    """Res2Net keeps the width of its pieces as an attribute; all pieces must lose equally many channels."""
    module = pytest.importorskip("timm.models.res2net")
    block = module.Bottle2neck(32, 8, base_width=64, norm_layer=nn.BatchNorm2d)
    return nn.Sequential(nn.Conv2d(3, 32, 3), block, nn.Conv2d(32, 7, 1)), IMAGE


def blurred() -> Case:
    layers = pytest.importorskip("timm.layers")
    return nn.Sequential(nn.Conv2d(3, 16, 3), layers.BlurPool2d(16), nn.Conv2d(16, 7, 1)), IMAGE


def standardized() -> Case:
    layers = pytest.importorskip("timm.layers")
    convs = (layers.ScaledStdConv2d(3, 16, 3), nn.SiLU(), layers.ScaledStdConv2d(16, 24, 3), nn.SiLU())
    return nn.Sequential(*convs, layers.StdConv2d(24, 7, 1)), IMAGE


def transposed_groups() -> Case:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 24, 2, 2, groups=4), nn.BatchNorm2d(24), nn.Conv2d(24, 7, 1)
    ), IMAGE


CASES: tuple[Callable[[], Case], ...] = (
    residual, dense, shuffle, squeeze_excite, fire, inception, grouped, convnext, unet, two_inputs,
    split_attention, split_by_attribute, blurred, standardized, transposed_groups,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_model_of_the_zoo_equals_the_masked_original_and_shrinks(case: Callable[[], Case]) -> None:
    torch.manual_seed(0)
    model, inputs = case()
    model.eval()
    groups = dependency_groups(model, inputs)
    whole: Any = count_macs(model, inputs)
    for ratio in RATIOS:
        pruned, error = cut_to(model, inputs, groups, ratio)
        assert error <= 1e-9
        assert type(pruned) is type(model)
        assert count_macs(pruned, inputs) <= (1.01 - ratio if ratio < 0.5 else 0.5) * whole


@pytest.mark.parametrize("case", [blurred, standardized, transposed_groups, split_by_attribute, split_attention])
def test_no_channel_between_two_layers_is_frozen(case: Callable[[], Case]) -> None:
    model, inputs = case()
    groups = dependency_groups(model.eval(), inputs)
    first = next(name for name, _ in model.named_parameters())
    assert any(s.tensor == first and s.dimension == 0 for group in groups.groups for s in group.slices)


@pytest.mark.parametrize(
    ("part", "found", "added"),
    [
        ("ours", {}, {"ok": False, "reason": "start: killed"}),
        ("ours", {"stage": "prune 0.3"}, {"ok": False, "reason": "prune 0.3: killed"}),
        ("ours", {"stage": "onnx", "ok": True, "reason": ""}, {"onnx_ok": False, "onnx_ok_reason": "onnx: killed"}),
        ("ours", {"stage": "parity", "ok": True, "onnx_ok": True}, {"parity_ok": False, "parity_ok_reason": "parity: killed"}),
        ("ours", {"stage": "onnx", "ok": True, "onnx_ok": False, "onnx_ok_reason": "its own"}, {}),
        ("ours", {"stage": "done", "ok": True}, {}),
        ("peer", {"stage": "graph"}, {"tp_ok": False, "tp_ok_reason": "graph: killed"}),
    ],
)
def test_a_process_that_was_ended_leaves_a_reason_for_the_stage_it_was_in(
    part: str, found: dict[str, Any], added: dict[str, Any]
) -> None:
    assert early_end(part, found, "killed") == added
