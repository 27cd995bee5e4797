"""Linear layers on dynamically rounded inputs in ONNX: DynamicQuantizeLinear and MatMulInteger, standard operators.

    q, s_x, z = DynamicQuantizeLinear(x)                      x (..., in)
    y = Cast(MatMulInteger(q, w, z)) * (s_x * s_w) + b        w (in, out) int8, s_w (out,)

In this order ONNX Runtime 1.32 takes them as one operator (MatMulIntegerToFloat, DynamicQuantizeMatMul).
"""

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper
from onnx.defs import OpSchema

from paredown.deploy.constants import Constants
from paredown.deploy.nodes import attribute, replace_nodes_

DOMAIN, PLACEHOLDER = "paredown", "DynamicQuantize"
_PRODUCTS = ("MatMul", "Gemm")


def translate() -> Any:
    """The onnxscript translation of `paredown::dynamic_quantize`: one placeholder node, lowered later by `lower_`."""
    from onnxscript import values

    schema = OpSchema(
        PLACEHOLDER,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter("x", "tensor(float)")],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
    )
    operator = values.Op(values.Opset(DOMAIN, 1), PLACEHOLDER, schema)

    def dynamic_quantize(x: Any) -> Any:
        return operator(x)

    return dynamic_quantize


def lower_(model: ModelProto) -> int:
    """Replaces every placeholder by DynamicQuantizeLinear and DequantizeLinear; returns how many there were."""
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, PLACEHOLDER):
            output = node.output[0]
            parts = [f"{output}_{part}" for part in ("quantized", "scale", "zero_point")]
            nodes += [
                helper.make_node("DynamicQuantizeLinear", [node.input[0]], parts, name=parts[0]),
                helper.make_node("DequantizeLinear", parts, [output], name=output),
            ]
            count += 1
        else:
            nodes.append(node)
    replace_nodes_(model, nodes)
    return count


def integer_products_(model: ModelProto) -> int:
    """MatMul(x, w) and Gemm(x, w, b) of a dynamically rounded x and a dequantized constant w -> MatMulInteger; how many."""
    constants = Constants(model)
    made = {name: node for node in model.graph.node for name in node.output}
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        added = _product(node, made, constants) if node.op_type in _PRODUCTS else []
        nodes += added or [node]
        count += bool(added)
    replace_nodes_(model, nodes)
    return count


def _product(node: NodeProto, made: dict[str, NodeProto], constants: Constants) -> list[NodeProto]:
    """The operators that stand for a product; [] where it has to stay one of floats."""
    x, w = made.get(node.input[0]), made.get(node.input[1])
    if x is None or w is None or {x.op_type, w.op_type} != {"DequantizeLinear"}:
        return []
    source = made.get(x.input[0])
    if source is None or source.op_type != "DynamicQuantizeLinear":
        return []
    transposed = bool(attribute(node, "transB", 0))
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return []
    integers, scale = constants.get(w.input[0]), constants.get(w.input[1])
    if integers is None or scale is None or integers.ndim != 2 or attribute(w, "axis", 1) != (0 if transposed else 1):
        return []
    matrix = constants.add(f"{w.input[0]}_in_out", np.ascontiguousarray(integers.T)) if transposed else w.input[0]
    bias = node.input[2] if len(node.input) == 3 else None
    return _written(node, (source.output[0], source.output[1], source.output[2]), matrix, w.input[1], bias)


def _written(node: NodeProto, x: tuple[str, str, str], matrix: str, scale: str, bias: str | None) -> list[NodeProto]:
    """x: integers, scale and zero point."""
    output = node.output[0]
    sums, floats, scales = f"{output}_sums", f"{output}_floats", f"{output}_scales"
    product = f"{output}_product" if bias else output
    nodes = [
        helper.make_node("MatMulInteger", [x[0], matrix, x[2]], [sums], name=sums),
        helper.make_node("Cast", [sums], [floats], name=floats, to=1),
        helper.make_node("Mul", [x[1], scale], [scales], name=scales),
        helper.make_node("Mul", [floats, scales], [product], name=product),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [product, bias], [output], name=output))
    for entry in nodes:
        entry.metadata_props.extend(node.metadata_props)
    return nodes
