"""Linear layers on dynamically rounded inputs in ONNX: DynamicQuantizeLinear and MatMulInteger, standard operators.

    q, s_x, z = DynamicQuantizeLinear(x)                      x (..., in)
    y = Cast(MatMulInteger(q, w, z)) * (s_x * s_w) + b        w (in, out) int8, s_w (out,)

In this order ONNX Runtime 1.32 takes them as one operator (MatMulIntegerToFloat, DynamicQuantizeMatMul).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper
from onnx.defs import OpSchema

from paredown.deploy.constants import Constants
from paredown.deploy.nodes import attribute, is_plain, order_of, originating, rewrite_

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
    return rewrite_(model, lambda node: _lowered(node) if (node.domain, node.op_type) == (DOMAIN, PLACEHOLDER) else [])


def _lowered(node: NodeProto) -> list[NodeProto]:
    output = node.output[0]
    parts = [f"{output}_{part}" for part in ("quantized", "scale", "zero_point")]
    return [
        helper.make_node("DynamicQuantizeLinear", [node.input[0]], parts, name=parts[0]),
        helper.make_node("DequantizeLinear", parts, [output], name=output),
    ]


def integer_products_(model: ModelProto) -> int:
    """MatMul(x, w) and Gemm(x, w, b) of a dynamically rounded x and a dequantized constant w -> MatMulInteger; how many."""
    constants = Constants(model)
    made = {name: node for node in model.graph.node for name in node.output}
    return rewrite_(model, lambda node: _product(node, made, constants) if node.op_type in _PRODUCTS else [])


def _product(node: NodeProto, made: dict[str, NodeProto], constants: Constants) -> list[NodeProto]:
    """The operators that stand for a product; [] where it has to stay one of floats."""
    x, w = made.get(node.input[0]), made.get(node.input[1])
    if x is None or w is None or {x.op_type, w.op_type} != {"DequantizeLinear"}:
        return []
    source = made.get(x.input[0])
    if source is None or source.op_type != "DynamicQuantizeLinear":
        return []
    transposed = bool(attribute(node, "transB", 0))
    if not is_plain(node):
        return []
    integers, scale = _integers(w.input[0], made, constants), constants.get(w.input[1])
    if integers is None or scale is None or integers.ndim != 2 or attribute(w, "axis", 1) != (0 if transposed else 1):
        return []
    matrix = constants.add(f"{w.input[0]}_in_out", np.ascontiguousarray(integers.T)) if transposed else w.input[0]
    bias = node.input[2] if len(node.input) == 3 else None
    return _written(node, (source.output[0], source.output[1], source.output[2]), matrix, w.input[1], bias)


def _integers(name: str, made: dict[str, NodeProto], constants: Constants) -> npt.NDArray[Any] | None:
    """Of a constant, or of one that is transposed as the file is loaded."""
    moved = made.get(name)
    if moved is None or moved.op_type != "Transpose":
        return constants.get(name)
    value = constants.get(moved.input[0])
    return None if value is None else value.transpose(order_of(moved, value.ndim))


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
    return originating(nodes, node)
