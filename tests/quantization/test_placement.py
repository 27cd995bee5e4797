"""Where quantizers stand, by key: one per tensor that enters or leaves an int8 operator, behind what is fused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from paredown.core.steps import Activations, Quantize
from paredown.core.target import Runtime
from paredown.graph.trace import trace
from paredown.quantization.nodes import name_of
from paredown.quantization.placement import RULES, Placement, place
from paredown.quantization.static import prepare
from tests.conftest import SmallResNet
from tests.quantization.models import Attention, Gated, PaddedShortcut, Scored


def placed(model: nn.Module, x: Tensor, target: str | None = None, protect: tuple[str, ...] = ()) -> Placement:
    return place(trace(model.eval(), x).module(check_guards=False), RULES[target], protect)


def keys(placement: Placement) -> list[str]:
    return [site.key for site in placement.activations]


def operators(nodes: tuple[fx.Node, ...]) -> list[str]:
    return [name_of(node) for node in nodes]


IMAGE = torch.randn(2, 3, 8, 8)


def test_quantizers_stand_behind_the_fused_relu_and_not_on_the_result() -> None:
    placement = placed(PaddedShortcut(), IMAGE)
    assert keys(placement) == ["stem@0:input", "stem@0:output", "conv1@0:output", "conv2@0:output", "@0:add", "head@0:input"]
    assert operators(tuple(site.node for site in placement.activations)) == ["", "relu", "relu", "conv2d", "relu", "mean"]
    assert [site.key for site in placement.weights] == [f"{n}@0:weight" for n in ("stem", "conv1", "conv2", "head")]
    assert [site.key for site in placement.biases] == [f"{n}@0:bias" for n in ("stem", "conv1", "conv2", "head")]


def test_a_padded_shortcut_keeps_the_scale_and_is_quantized_again_behind_the_padding() -> None:
    placement = placed(PaddedShortcut(), IMAGE)
    assert [(site.key, name_of(site.node), operators(site.readers)) for site in placement.restated] == [
        ("stem@0:output", "pad", ["add"])
    ]


def test_openvino_adds_to_an_unrounded_convolution() -> None:
    placement = placed(PaddedShortcut(), IMAGE, "openvino")
    assert "conv2@0:output" not in keys(placement)
    assert "@0:add" in keys(placement)


def test_gates_and_products_are_integers_where_the_runtime_has_kernels_for_them() -> None:
    found = {
        target: list(prepare(Gated().eval(), IMAGE, Quantize(target=target), reduced=True).quantizers)
        for target in ("onnxruntime", "openvino")
    }
    own = {"act@0:sigmoid", "act@0:mul", "act@1:sigmoid", "@0:sigmoid"}  # other products are what a convolution reads
    assert own == {key for key in found["onnxruntime"] if key.endswith((":sigmoid", ":mul"))}
    assert {"stem@0:output", "up@0:input", "out@0:input"} <= set(found["onnxruntime"])
    fused = {"stem@0:silu", "down@0:silu", "up@0:sigmoid"}  # each behind what is fused into the convolution
    read = {"stem@0:input", "down@0:input", "out@0:input", "out@0:output"}
    assert fused | read == {key for key in found["openvino"] if not key.endswith((":weight", ":bias"))}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_probabilities_on_their_way_out_are_on_no_grid(target: Runtime) -> None:
    found = list(prepare(Scored().eval(), IMAGE, Quantize(target=target), reduced=True).quantizers)
    assert "score@0:output" in found and "score@0:sigmoid" not in found
    assert {"@0:sigmoid"} >= {key for key in found if key.endswith(":sigmoid")}  # the one of the silu
    assert not {"@1:mul", "@2:mul"} & set(found)


def test_what_has_two_scales_gets_no_more_of_them() -> None:
    step = Quantize(target="onnxruntime", activations=Activations(two_sided=True))
    found = prepare(Gated().eval(), IMAGE, step, reduced=True).quantizers
    assert not [key for key in found if key.endswith((":sigmoid", ":mul"))]


class TwoConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.a(x) + self.b(x))
        return out


def test_weights_alone_leave_the_silus_whole() -> None:
    graph = prepare(
        Gated().eval(), (torch.randn(2, 3, 8, 8),), Quantize(kind="weight_only", target="onnxruntime"), reduced=False
    ).graph
    assert [name_of(node) for node in graph.nodes].count("silu") == 2


def test_of_two_convolutions_openvino_leaves_the_later_unrounded() -> None:
    assert keys(placed(TwoConvolutions(), IMAGE)) == ["a@0:input", "a@0:output", "b@0:output", "c@0:input"]
    assert keys(placed(TwoConvolutions(), IMAGE, "openvino")) == ["a@0:input", "a@0:output", "c@0:input"]


def test_a_protected_layer_may_feed_a_sum() -> None:
    placement = placed(SmallResNet(), torch.randn(2, 1, 8, 8), protect=("stem",))
    assert next(site.key for site in placement.activations) == "block1/conv1@0:input"


def test_protected_modules_and_what_is_inside_them_stay_in_float() -> None:
    placement = placed(SmallResNet(), torch.randn(2, 1, 8, 8), protect=("block1", "head"))
    assert not [site.key for site in placement.weights if site.key.startswith(("block1/", "head"))]
    assert "block1@0:add" not in keys(placement)
    assert "block2/conv1@0:weight" in [site.key for site in placement.weights]


class AttentionOfTorch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attn(x, x, x)[0]
        return out


def test_a_module_is_protected_that_only_holds_a_weight() -> None:
    model, x = AttentionOfTorch(), torch.randn(2, 5, 8)
    assert [site.key for site in placed(model, x).weights] == ["attn@0:weight", "attn@1:weight"]
    assert [site.key for site in placed(model, x, protect=("attn.out_proj",)).weights] == ["attn@0:weight"]


def test_in_a_transformer_linear_inputs_are_quantized_and_the_residual_stream_is_not() -> None:
    placement = placed(Attention(), torch.randn(2, 6, 8))
    assert keys(placement) == ["qkv@0:input", "out@0:input", "up@0:input", "down@0:input", "head@0:input"]
    stream = next(site for site in placement.activations if site.key == "up@0:input")
    assert operators(stream.readers) == ["linear"]  # the residual addition reads the precise value


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 4, 1), nn.Dropout(0.1), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.drop(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)))
        return out


def test_pooling_reshaping_and_dropout_pass_the_quantized_tensor_on() -> None:
    assert keys(placed(Pooled(), IMAGE)) == ["conv@0:input", "conv@0:output"]


class PaddedByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(F.pad(self.a(x), (1, 1, 1, 1), value=1.0))
        return out


def test_padding_with_another_value_gets_a_scale_of_its_own() -> None:
    assert keys(placed(PaddedByOne(), IMAGE)) == ["a@0:input", "a@0:output", "b@0:input"]


class Functional(nn.Module):
    """Two convolutions called as functions, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(F.conv2d(x, self.weight), self.other), self.weight)


def test_calls_in_one_module_are_counted() -> None:
    assert [site.key for site in placed(Functional(), IMAGE).weights] == ["@0:weight", "@1:weight", "@2:weight"]


@pytest.mark.parametrize(("runtime", "stored"), [("openvino", False), ("onnxruntime", True)])
def test_what_an_average_pool_alone_reads_stays_in_float_where_its_integer_kernel_is_wrong(
    runtime: Runtime, stored: bool
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    found = keys(placed(net, IMAGE, runtime))
    assert ("0@0:output" in found) is stored and "3@0:input" in found
