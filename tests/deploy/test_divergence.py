"""What of a file is compared by itself, and what it is fed with."""

import pathlib

import numpy as np
import pytest
import torch
from onnx import load_model
from torch import Tensor, nn
from torch.nn import functional as F

import paredown
from paredown.deploy.divergence import (
    WEIGHTED,
    Graph,
    Measure,
    by_rounding,
    first_divergence,
    module_of_weight,
    reference_values,
)
from paredown.deploy.onnx import build, export_onnx
from paredown.deploy.parity import difference


class Heads(nn.Module):
    """Attention whose output is moved, (batch, heads, tokens, 8) to (batch, tokens, 64), before a layer reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.last = nn.Linear(64, 192), nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 8, 8)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return self.last((x + self.out(attended)).relu())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_quantizer_alone_may_move_a_value_at_an_edge_and_no_more(runtime: str, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    task = paredown.Task(net, (x,), [(x, x)], [(x, x)], loss=lambda o, t: o.mean(), metric=lambda o, t: o.mean(1))
    target = paredown.Target(runtime)  # type: ignore[arg-type]
    model = paredown.quantize(task, paredown.Quantize(), target=target)
    export_onnx(model, task.inputs, tmp_path / "net.onnx", target=target)
    graph = Graph(load_model(str(tmp_path / "net.onnx")), reference_values(build(model, task.inputs), task.inputs))
    stretches = {value: graph.stretch(value, coarse=True) for value in graph.compared()}
    alone = [v for v, s in stretches.items() if {graph.nodes[i].op_type for i in s[0]} == {"QuantizeLinear", "DequantizeLinear"}]
    (value,) = alone
    rounded, step = graph.reference[value], float(model.quantizer("0@0:input").scale)
    allowed = by_rounding(graph, value, stretches[value]) * float(np.linalg.norm(rounded))
    assert allowed >= step * 2**0.5, "two that stand at an edge"
    assert allowed < 0.03 * step * rounded.size**0.5, "a wrong zero point moves them all"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_layer_is_fed_from_before_the_quantizer_through_what_moves_values(runtime: str, tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 64)
    task = paredown.Task(Heads().eval(), (x,), [(x, x)], [(x, x)], loss=lambda o, t: o.mean(), metric=lambda o, t: o.mean((1, 2)))
    target = paredown.Target(runtime)  # type: ignore[arg-type]
    model = paredown.quantize(task, paredown.Quantize(), target=target)
    path = tmp_path / "heads.onnx"
    export_onnx(model, task.inputs, path, target=target)
    twin = build(model, task.inputs)
    graph = Graph(load_model(str(path)), reference_values(twin, task.inputs))
    out = next(i for i, node in enumerate(graph.nodes) if module_of_weight(graph, node) == "out" and node.op_type in WEIGHTED)
    stretches = [graph.stretch(value, coarse=True)[0] for value in graph.compared()]
    kinds = {graph.nodes[i].op_type for i in next(nodes for nodes in stretches if out in nodes)}
    assert {"QuantizeLinear", "Transpose"} <= kinds
    measure = Measure(lambda got, want: difference((got,), (want,), "int8"), 0.02, True)
    found = first_divergence(twin, task.inputs, path, target, measure)
    assert found is not None and found.verdict == "rounding"
    assert np.isfinite(found.error)
