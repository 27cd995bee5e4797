import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from paredown.core.errors import ParityError
from paredown.deploy import second_look
from paredown.deploy.onnx import Built, build, export_onnx
from paredown.deploy.parity import batch_sizes, check_parity, difference, resized

RUNTIMES = ["onnxruntime", "openvino"]


_BUILT: dict[int, Built] = {}


@pytest.fixture(autouse=True)
def one_twin_per_model(monkeypatch, floating, quantized, deep) -> None:
    """The graph of each of the three models is built once for all tests here."""

    def cached(model, inputs, dynamic=None) -> Built:
        known = next((one for one in (floating, quantized, deep) if one.model is model), None)
        return build(model, inputs, dynamic) if known is None else one_twin(known)

    monkeypatch.setattr(second_look, "build", cached)


def one_twin(exported) -> Built:
    if id(exported.model) not in _BUILT:
        _BUILT[id(exported.model)] = build(exported.model, exported.inputs)
    return _BUILT[id(exported.model)]


def scaled(name: str, factor: float):
    """A change to a file: one initializer times a factor (an integer one: negated)."""

    def change(model) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor)
        wrong = (value * factor).astype(value.dtype) if value.dtype.kind == "f" else -value
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(wrong), name))

    return change


def with_attribute(output: str, name: str, value: object):
    """A change to a file: one attribute of the node that makes `output`."""

    def change(model) -> None:
        node = next(n for n in model.graph.node if output in n.output)
        next(a for a in node.attribute if a.name == name).CopyFrom(helper.make_attribute(name, value))

    return change


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_float_file_agrees_at_three_batch_sizes(floating, runtime) -> None:
    found = check_parity(floating.model, floating.inputs, floating.path, runtime, precision="fp32")
    assert [p.batch for p in found] == [4, 1, 3]
    assert all(p.error <= p.tolerance == 1e-4 for p in found)
    assert {p.candidate for p in found} == {""}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_wrong_weight_in_the_middle_is_named(floating, copy_of, runtime) -> None:
    bad = copy_of(floating.path, scaled("block2.conv1.weight", 1.2))
    with pytest.raises(ParityError) as caught:
        check_parity(floating.model, floating.inputs, bad, runtime, precision="fp32")
    text = str(caught.value)
    assert "first diverging operator: Conv" in text
    assert "module block2.conv1" in text
    assert "conftest.py:" in text
    assert "/" not in text.partition("conftest.py")[0].rpartition("(")[2]


def test_wrong_weight_of_the_last_layer_is_named(floating, copy_of) -> None:
    bad = copy_of(floating.path, scaled("head.weight", 0.5))
    with pytest.raises(ParityError, match=r"first diverging operator: Gemm .*module head"):
        check_parity(floating.model, floating.inputs, bad, "onnxruntime", precision="fp32")


def test_changed_attribute_is_named(floating, copy_of) -> None:
    graph = onnx.load(floating.path).graph
    conv = next(n for n in graph.node if "block1.conv2.weight" in n.input)
    bad = copy_of(floating.path, with_attribute(conv.output[0], "pads", [2, 2, 0, 0]))
    with pytest.raises(ParityError, match=rf"first diverging operator: Conv {conv.name} .*module block1.conv2"):
        check_parity(floating.model, floating.inputs, bad, "onnxruntime", precision="fp32")


def test_replaced_operator_is_named(floating, copy_of) -> None:
    def change(model) -> None:
        next(n for n in model.graph.node if n.op_type == "ReduceMean").op_type = "ReduceMax"

    with pytest.raises(ParityError, match="first diverging operator: ReduceMax"):
        check_parity(floating.model, floating.inputs, copy_of(floating.path, change), "onnxruntime", precision="fp32")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_wrong_int8_weight_is_named(quantized, copy_of, runtime) -> None:
    bad = copy_of(quantized.path, scaled("conv2.layer.weight_quantized", -1))
    with pytest.raises(ParityError, match=r"relative L2 at most 0.02.*first diverging operator: Conv .*module conv2.layer"):
        check_parity(quantized.model, quantized.inputs, bad, runtime, precision="int8")


def test_wrong_activation_scale_is_named(quantized, copy_of) -> None:
    graph = onnx.load(quantized.path).graph
    relu = next(n for n in graph.node if n.op_type == "Relu")
    q = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == relu.output[0])
    dq = next(n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == q.output[0])

    def change(model) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "wrong"))
        next(n for n in model.graph.node if n.output[0] == dq.output[0]).input[1] = "wrong"

    with pytest.raises(ParityError, match=rf"first diverging operator: DequantizeLinear {dq.name} .*module q1"):
        check_parity(quantized.model, quantized.inputs, copy_of(quantized.path, change), "onnxruntime", precision="int8")


def off_by(factor: float, *, where: str):
    """A change to a file: scales of weights or biases times a factor."""

    def change(model) -> None:
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and where in node.input[0]:
                scaled(node.input[1], factor)(model)

    return change


def rounded_once_more(name: str):
    """A change to a file: a float weight rounded to 8 bits, all with one scale, as ONNX Runtime does to some."""

    def change(model) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor)
        step = np.abs(value).max() / 127
        tensor.CopyFrom(numpy_helper.from_array((np.round(value / step) * step).astype(np.float32), name))

    return change


def zero_point_moved(node_index: int):
    """A change to a file: the zero point of one DequantizeLinear of activations, by 1."""

    def change(model) -> None:
        made = {name: node for node in model.graph.node for name in node.output}
        pairs = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in made]
        node = pairs[node_index]
        old = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == node.input[2])
        model.graph.initializer.append(numpy_helper.from_array((old + 1).astype(old.dtype), "moved"))
        node.input[2] = "moved"

    return change


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_last_bits_that_add_up_in_a_deep_net_are_no_defect(deep, copy_of, runtime) -> None:
    path = copy_of(deep.path, off_by(1.00005, where="layer.weight_quantized"))  # as if summed in another order
    more = [(torch.randn(24, 3, 20, 20, generator=torch.Generator().manual_seed(i)),) for i in range(9)]
    found = check_parity(deep.model, deep.inputs, path, runtime, precision="int8", more=more)
    looked = [p for p in found if p.kind == "relative L2 over 64 samples"]
    assert looked
    assert all(0.02 < p.error <= p.tolerance for p in looked)
    assert len({p.tolerance for p in looked}) == 1  # what quantization changed of the same samples


DEFECTS = {
    "a scale of weights 2 % off": (off_by(1.02, where="convs.6.layer.weight"), "convs.6.layer"),
    "a float layer rounded to 8 bits": (rounded_once_more("middle.weight"), "middle"),
    "a zero point off by one": (zero_point_moved(7), "rounded.5"),
    "a wrong bias": (off_by(1.1, where="_bias_kept_quantized"), "middle"),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_in_a_deep_net_is_named_however_small(deep, copy_of, runtime, defect) -> None:
    change, module = DEFECTS[defect]
    words = "first diverging operator|first operator that differs by more than rounding"
    with pytest.raises(ParityError, match=rf"({words}): .*module {module}"):
        check_parity(deep.model, deep.inputs, copy_of(deep.path, change), runtime, precision="int8")


def test_a_file_further_off_than_quantization_changed_fails(deep, copy_of, monkeypatch) -> None:
    path = copy_of(deep.path, off_by(1.00005, where="layer.weight_quantized"))
    known = second_look._known

    def unrounded(*given):
        return [(batch, simulated, simulated) for batch, simulated, _ in known(*given)]

    monkeypatch.setattr(second_look, "_known", unrounded)
    with pytest.raises(ParityError, match=r"over 4 samples at most 0.02, .*no single operator exceeds the tolerance"):
        check_parity(deep.model, deep.inputs, path, "onnxruntime", precision="int8")


class Cancelling(nn.Module):
    """The difference of numbers that agree in their first five digits: the last bits are a percent of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 8), nn.Linear(256, 8)
        with torch.no_grad():
            self.second.weight.copy_(self.first.weight + 1e-6 * torch.randn(8, 256))
            self.second.bias.copy_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) - self.second(x)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_last_bits_that_cancellation_brings_up_are_no_defect(runtime, tmp_path, copy_of) -> None:
    torch.manual_seed(0)
    model, x = Cancelling().eval(), torch.randn(16, 256)
    artifact = export_onnx(model, x, tmp_path / "m.onnx", target=runtime)
    found = check_parity(model, x, artifact.path, runtime, precision="fp32")
    assert all(p.error <= p.tolerance for p in found)
    assert all(p.kind.endswith("against float64") and p.tolerance > 1e-4 for p in found if p.kind != "max |difference| / max |y|")
    wrong = copy_of(artifact.path, scaled("second.weight", 1.001))
    with pytest.raises(ParityError, match="first diverging operator"):
        check_parity(model, x, wrong, runtime, precision="fp32")


def test_a_float_file_further_from_float64_than_torch_fails(tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    model, x = Cancelling().eval(), torch.randn(16, 256)
    artifact = export_onnx(model, x, tmp_path / "m.onnx", target="onnxruntime")
    monkeypatch.setattr(second_look, "_FACTOR", 0.0)
    with pytest.raises(ParityError, match=r"against float64 at most 0.0001, .*no single operator exceeds"):
        check_parity(model, x, artifact.path, "onnxruntime", precision="fp32")


def test_samples_are_read_for_a_second_look_alone(quantized) -> None:
    def fail():
        raise AssertionError("read")
        yield

    check_parity(quantized.model, quantized.inputs, quantized.path, "onnxruntime", precision="int8", more=fail())


def test_batch_size_written_into_the_file_is_named(floating, copy_of) -> None:
    def change(model) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4

    with pytest.raises(ParityError, match=r"batch 1.*batch sizes in forward"):
        check_parity(floating.model, floating.inputs, copy_of(floating.path, change), "onnxruntime", precision="fp32")


def test_file_of_another_model_disagrees(floating, tmp_path) -> None:
    other = type(floating.model)(8).eval()
    with pytest.raises(ParityError):
        check_parity(other, floating.inputs, floating.path, "onnxruntime", precision="fp32")


def test_parity_leaves_the_modes_of_the_model(floating) -> None:
    floating.model.train()
    try:
        check_parity(floating.model, floating.inputs, floating.path, "onnxruntime", precision="fp32")
        assert all(module.training for module in floating.model.modules())
    finally:
        floating.model.eval()


@pytest.mark.parametrize(("size", "expected"), [(2, (2, 1, 3)), (1, (1, 3, 2)), (3, (3, 1, 2)), (64, (64, 1, 3))])
def test_three_different_batch_sizes(size, expected) -> None:
    assert batch_sizes(size) == expected


def test_resized_repeats_and_cuts() -> None:
    x = torch.arange(2)
    assert resized((x, {"y": x}), 3)[0].tolist() == [0, 1, 0]
    assert resized({"x": x}, 1)["x"].tolist() == [0]


def test_difference_is_infinite_for_nan_and_other_shapes() -> None:
    one = np.ones((2, 3), np.float32)
    assert difference((one,), (one[:1],), "fp32") == float("inf")
    assert difference((one,), (one, one), "fp32") == float("inf")
    assert not difference((one * np.nan,), (one,), "fp32") <= 1.0
    assert difference((one * 0,), (one * 0,), "int8") == 0.0
    assert difference((one * 1.01,), (one,), "int8") == pytest.approx(0.01, rel=1e-4)


def test_values_of_the_file_bear_the_names_of_the_graph(quantized) -> None:
    built = build(quantized.model, quantized.inputs)
    nodes = {node.name for node in built.program.graph.nodes}
    made = [name for node in built.model.graph.node for name in node.output]
    named = [name for name in made if built.renamed.get(name, name) in nodes]
    assert len(named) >= 0.6 * len(made)
    assert built.renamed == {"output": "linear"}
