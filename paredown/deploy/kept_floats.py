"""Layers that are to stay in float between integer ones do.

ONNX Runtime 1.32 (WeightBiasQuantization) rounds the weights of a Conv or Gemm to 8 bits, all with one scale, where it reads a
DequantizeLinear and goes to a QuantizeLinear: of a layer that was protected, say, or whose grid no integer operator takes. It
leaves alone what has a computed bias. So the bias of such a layer is written as 32-bit integers with a DequantizeLinear: to 2^-31
of its largest entry, and a vector's time.
"""

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from paredown.deploy.constants import Constants
from paredown.deploy.nodes import attribute, originating, replace_nodes_

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_STEPS = 2.0**30


def keep_floats_(model: ModelProto) -> int:
    """Gives every float layer that reads a dequantized tensor a bias in 32 bits; returns how many there were."""
    constants = Constants(model)
    made = {name: node for node in model.graph.node for name in node.output}
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        added = _bias(node, made, constants) if node.op_type in _LAYERS else None
        if added is not None:
            inputs = [*node.input[:2], added.output[0]]
            del node.input[:]
            node.input.extend(inputs)
            nodes.append(added)
            count += 1
        nodes.append(node)
    replace_nodes_(model, nodes)
    return count


def _bias(node: NodeProto, made: dict[str, NodeProto], constants: Constants) -> NodeProto | None:
    x, weight = made.get(node.input[0]), made.get(node.input[1])
    if x is None or x.op_type != "DequantizeLinear" or (weight is not None and weight.op_type == "DequantizeLinear"):
        return None
    bias = constants.get(node.input[2]) if len(node.input) > 2 else _zeros(node, made, constants)
    if bias is None or bias.ndim != 1 or attribute(node, "beta", 1.0) != 1.0:
        return None
    top = np.abs(bias).max(initial=0)
    scale = np.float32(top / _STEPS if top > 0 else 1.0)
    q = np.round(bias.astype(np.float64) / scale).astype(np.int32)
    output = f"{node.output[0]}_bias_kept"
    inputs = [constants.add(f"{output}_quantized", q), constants.add(f"{output}_scale", np.array(scale))]
    return originating([helper.make_node("DequantizeLinear", inputs, [output], name=output)], node)[0]


def _zeros(node: NodeProto, made: dict[str, NodeProto], constants: Constants) -> Any:
    """The bias of a layer without one; None where its channels aren't known."""
    shape = _shape(node.input[1], made, constants)
    if shape is None:
        return None
    if node.op_type == "ConvTranspose":
        return np.zeros(shape[1] * attribute(node, "group", 1), np.float32)
    return np.zeros(shape[1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 0], np.float32)


def _shape(name: str, made: dict[str, NodeProto], constants: Constants) -> tuple[int, ...] | None:
    """Of a weight: a constant, or arithmetic of constants."""
    value, node = constants.get(name), made.get(name)
    if value is not None:
        return tuple(value.shape)
    if node is None:
        return None
    if node.op_type == "Reshape":
        target = constants.get(node.input[1])
        return None if target is None else tuple(int(n) for n in target)
    if node.op_type == "Gather":
        return _shape(node.input[1], made, constants)
    return _shape(node.input[0], made, constants) if node.op_type in ("Cast", "Mul") else None
