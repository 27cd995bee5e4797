"""Which bits each layer of a quantized model ended with, for the report: stored in, computed in, and why not in integers."""

from torch import fx

from paredown.core.report import LayerBits
from paredown.graph.trace import module_path
from paredown.quantization.model import QuantizedModel
from paredown.quantization.nodes import argument, constant, name_of
from paredown.quantization.placement import RECURRENT
from paredown.quantization.scheme import FLOAT

_WEIGHTED = frozenset(["conv1d", "conv2d", "conv3d", "linear"])
_LOOKUP = "embedding"
_IN_FLOAT = "stored so, computed in float: ONNX's recurrent operators take floats only"
_LOOKED_UP = "stored so, looked up as float"
_ALONE = "stored so, computed in float: weights alone are on a grid"
_CONVOLUTION = "dynamic int8 is for linear and recurrent layers; convolutions take the static kind"
_HALF = "stored as 16-bit floats, computed in 32: converted when the file is loaded"
_PALETTE = "stored as indices into a codebook of its own, computed in float: looked up when the file is loaded"
_LEFT_OUT = "not on a grid: protected, or an operator with no place for a quantizer"


def layer_bits(model: QuantizedModel) -> tuple[LayerBits, ...]:
    """One row for each layer with weights, in the order of the graph; a layer that is called twice stands once."""
    rows: dict[tuple[str, str], LayerBits] = {}
    for node in model.graph.nodes:
        operator = name_of(node)
        weights = _weights(node, operator)
        if weights:
            rows.setdefault((module_path(node), operator), _row(model, node, operator, weights))
    return tuple(rows.values())


def _weights(node: fx.Node, operator: str) -> list[fx.Node]:
    """The nodes that bring a layer's weights; biases are not among them."""
    if operator in _WEIGHTED:
        found = [argument(node, 1)]
    elif operator == _LOOKUP:
        found = [node.args[0]]
    else:
        found = list(argument(node, 2, ())) if operator in RECURRENT else []
    return [w for w in found if isinstance(w, fx.Node)]


def _row(model: QuantizedModel, node: fx.Node, operator: str, weights: list[fx.Node]) -> LayerBits:
    values = [constant(model, w.args[0] if w.op == "call_module" else w) for w in weights]
    parameters = sum(v.numel() for v in values if v is not None and v.dim() > 1)
    bits = FLOAT if all(w.op != "call_module" for w in weights) else model.scheme.of(module_path(node)).weight_bits
    read = _activation_bits(model, node) if operator in _WEIGHTED and bits < FLOAT else FLOAT
    return LayerBits(module_path(node), operator, parameters, bits, read, _note(model, operator, bits, read))


def _activation_bits(model: QuantizedModel, node: fx.Node) -> int:
    """Of what a layer reads, found through the operators that only move it."""
    current = node.args[0]
    while isinstance(current, fx.Node):
        if str(current.target).startswith("quantizers."):
            return model.quantizer(str(current.target).removeprefix("quantizers.")).grid.bits
        if "dynamic_quantize" in str(current.target):
            return 8
        current = current.args[0] if current.args else None
    return FLOAT


def _note(model: QuantizedModel, operator: str, bits: int, read: int) -> str:
    if bits == FLOAT:
        unsupported = model.config.kind == "dynamic" and operator.startswith("conv")
        return _CONVOLUTION if unsupported else _LEFT_OUT
    if model.config.kind in ("fp16", "bf16", "palette"):
        return _PALETTE if model.config.kind == "palette" else _HALF
    if operator in RECURRENT:
        return _IN_FLOAT
    if operator == _LOOKUP:
        return _LOOKED_UP
    return _ALONE if read == FLOAT else ""
