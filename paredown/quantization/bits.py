"""Which bits each layer of a quantized model ended with, for the report: stored in, computed in, why not in integers, and what
that bought.
"""

import dataclasses

from torch import Tensor, fx

from paredown.core.errors import TaskError
from paredown.core.report import LayerBits, LayerCost
from paredown.graph.trace import module_path, path_of
from paredown.quantization.costs import Facts, stored_bytes
from paredown.quantization.layers import values_at
from paredown.quantization.model import QuantizedModel
from paredown.quantization.nodes import argument, constant, name_of, quantizer_key
from paredown.quantization.placement import PORTABLE, RECURRENT, TRANSPOSED, key_before
from paredown.quantization.scheme import FLOAT, MOST_INTEGER
from paredown.task.batches import batch_size

_WEIGHTED = PORTABLE.weighted | TRANSPOSED
_LOOKUP = "embedding"
_IN_FLOAT = "stored so, computed in float: ONNX's recurrent operators take floats only"
_LOOKED_UP = "stored so, looked up as float"
_ALONE = "stored so, computed in float: weights alone are on a grid"
_WIDE = "stored so, computed in float: integer operators take 8 bits"
_CONVOLUTION = "dynamic int8 is for linear and recurrent layers; convolutions take the static kind"
_HALF = "stored as 16-bit floats, computed in 32: converted when the file is loaded"
_PALETTE = "stored as indices into a codebook of its own, computed in float: looked up when the file is loaded"
_TWO_SIDED = "stored so, computed in float: ONNX's integer operators take one scale for both signs"
_LEFT_OUT = "not on a grid: protected, or an operator with no place for a quantizer"


def layer_bits(model: QuantizedModel) -> tuple[LayerBits, ...]:
    """One row for each layer with weights, in the order of the graph; a layer that is called twice stands once.

    Products with a bare parameter, which stay in float, have none. Raises TaskError for a float model.
    """
    if not isinstance(model, QuantizedModel):
        raise TaskError("model must be a quantized one", got=type(model).__name__, remedy="call paredown.quantize first")
    rows: dict[tuple[str, str], LayerBits] = {}
    macs = _macs(model)
    for node in model.graph.nodes:
        operator = name_of(node)
        weights = _weights(node, operator)
        if weights:
            rows.setdefault((module_path(node), operator), _row(model, node, weights, macs.get(node)))
    return tuple(rows.values())


def _macs(model: QuantizedModel) -> dict[fx.Node, int]:
    """Of one sample, of each convolution and linear layer: a product for each number of the weight of each output channel, or of
    a transposed convolution's input channel, at each place.
    """
    nodes = [node for node in model.graph.nodes if name_of(node) in _WEIGHTED and _weights(node, name_of(node))]
    counted = [node.args[0] if name_of(node) in TRANSPOSED else node for node in nodes]
    values = values_at(model, counted, model.example_inputs) if nodes else []
    found = {}
    for node, value in zip(nodes, values, strict=True):
        (weight,) = _values(model, _weights(node, name_of(node)))
        if weight is not None:  # computed weights are not counted
            found[node] = value.numel() // batch_size(model.example_inputs) * weight[0].numel()
    return found


def _weights(node: fx.Node, operator: str) -> list[fx.Node]:
    """The nodes that bring a layer's weights; biases are not among them."""
    if operator in _WEIGHTED:
        found = [argument(node, 1)]
    elif operator == _LOOKUP:
        found = [node.args[0]]
    else:
        found = list(argument(node, 2, ())) if operator in RECURRENT else []
    return [w for w in found if isinstance(w, fx.Node)]


def _values(model: QuantizedModel, weights: list[fx.Node]) -> list[Tensor | None]:
    return [constant(model, w.args[0] if w.op == "call_module" else w) for w in weights]


def _row(model: QuantizedModel, node: fx.Node, weights: list[fx.Node], macs: int | None) -> LayerBits:
    path, operator = module_path(node), name_of(node)
    matrices = [v for v in _values(model, weights) if v is not None and v.dim() > 1]
    parameters = sum(v.numel() for v in matrices)
    keys = [key for key in map(quantizer_key, weights) if key]
    bits = model.scheme.of(path_of(keys[0])).weight_bits if keys else FLOAT  # of a tied table the head's
    read = _activation_bits(model, node) if operator in _WEIGHTED and bits < FLOAT else FLOAT
    size = round(sum(_bytes(model, path, v, bits) for v in matrices))
    cost = None if macs is None else LayerCost(size, 4 * parameters, macs * bits * read, macs * FLOAT * FLOAT)
    return LayerBits(path, operator, parameters, bits, read, _note(model, operator, bits, read), cost, model.evidence.get(path))


def _bytes(model: QuantizedModel, path: str, weight: Tensor, bits: int) -> float:
    """Of a weight as it is stored, with its scales or its codebook."""
    if bits < FLOAT and model.config.kind in ("fp16", "bf16", "palette"):
        return weight.numel() * bits / 8 + (4 * 2**bits if model.config.kind == "palette" else 0)
    widths = dataclasses.replace(model.scheme.of(path), weight_bits=bits)
    return stored_bytes(Facts(path, weight.numel(), weight.shape[0], 0), widths)


def _activation_bits(model: QuantizedModel, node: fx.Node) -> int:
    """Of what a layer reads, found through the operators that only move it."""
    if key := key_before(node):
        return model.quantizer(key).grid.bits
    return 8 if "dynamic_quantize" in str(getattr(node.args[0], "target", "")) else FLOAT


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
    if model.config.weights.two_sided or model.config.activations.two_sided:
        return _TWO_SIDED
    return _ALONE if read == FLOAT else _WIDE if max(bits, read) > MOST_INTEGER else ""
