"""Grids with a scale for each sign in ONNX: QuantizeLinear has one scale, so standard operators around it, or instead of it.

    a weight     packed integers q; Cast, Less, Where, Mul: q s(q). Arithmetic of constants, done once when a file is loaded.
    a tensor     DQ(Q(max(x, 0), positive)) + DQ(Q(min(x, 0), negative)), both of int8 with zero point 0

What reads either computes in float: no integer operator of ONNX multiplies by a scale that depends on the sign.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.defs import OpSchema

from paredown.core.errors import ExportError
from paredown.deploy import narrow
from paredown.deploy.constants import Constants
from paredown.deploy.nodes import attribute, originating, rewrite_

DOMAIN, PLACEHOLDER = "paredown", "FakeQuantizeTwoSided"


def translate() -> Any:
    """The onnxscript translation of `paredown::fake_quantize_two_sided`: one placeholder node, lowered later by `lower_`."""
    from onnxscript import values

    schema = OpSchema(
        PLACEHOLDER,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(name, "tensor(float)") for name in ("x", "negative", "positive")],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
        attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT, "") for name in ("axis", "low", "high")],
    )
    operator = values.Op(values.Opset(DOMAIN, 1), PLACEHOLDER, schema)

    def fake_quantize_two_sided(x: Any, negative: Any, positive: Any, axis: int, low: int, high: int) -> Any:
        return operator(x, negative, positive, axis=axis, low=low, high=high)

    return fake_quantize_two_sided


def lower_(model: ModelProto) -> int:
    """Replaces every placeholder; returns how many there were. Raises ExportError where a scale isn't constant or positive."""
    constants = Constants(model)

    def replacement(node: NodeProto) -> list[NodeProto]:
        if (node.domain, node.op_type) != (DOMAIN, PLACEHOLDER):
            return []
        value, scales = constants.get(node.input[0]), _scales(node, constants)
        made = _tensor(node, scales, constants) if value is None else _weight(node, value, scales, constants)
        return originating(made, node)

    return rewrite_(model, replacement)


def _scales(node: NodeProto, constants: Constants) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Negative and positive."""
    found = []
    for name in node.input[1:3]:
        scale = constants.get(name)
        if scale is None or not (np.isfinite(scale).all() and (scale > 0).all()):
            got = "a computed one" if scale is None else f"{scale.min()}"
            raise ExportError(
                "the scales of a quantizer must be constant, positive and finite",
                got=f"{got} at {node.name}",
                remedy="calibrate it",
            )
        found.append(scale.astype(np.float32))
    return found[0], found[1]


def _weight(
    node: NodeProto, value: npt.NDArray[Any], scales: tuple[npt.NDArray[Any], npt.NDArray[Any]], constants: Constants
) -> list[NodeProto]:
    output, axis = node.output[0], attribute(node, "axis", 0)
    shape = [-1 if d == axis else 1 for d in range(value.ndim)]
    below, above = (scale.reshape(shape) for scale in scales)
    steps = np.round(value / np.where(value < 0, below, above).astype(value.dtype))
    q = steps.clip(attribute(node, "low", 0), attribute(node, "high", 0)).astype(np.int8)
    name, bits = f"{node.input[0]}_quantized", narrow.narrowest(q)
    nodes = narrow.stored(name, q, bits, f"{name}_int8", constants) if bits < 8 else []
    integers = f"{name}_int8" if nodes else constants.add(name, q)
    inputs = {key: constants.add(f"{output}_{key}", scale) for key, scale in (("negative", below), ("positive", above))}
    zero = constants.add("zero_float", np.array(0, np.float32))
    floats, signs, factor = (f"{output}_{part}" for part in ("floats", "signs", "factor"))
    return [
        *nodes,
        helper.make_node("Cast", [integers], [floats], name=floats, to=TensorProto.FLOAT),
        helper.make_node("Less", [floats, zero], [signs], name=signs),
        helper.make_node("Where", [signs, inputs["negative"], inputs["positive"]], [factor], name=factor),
        helper.make_node("Mul", [floats, factor], [output], name=output),
    ]


def _tensor(node: NodeProto, scales: tuple[npt.NDArray[Any], npt.NDArray[Any]], constants: Constants) -> list[NodeProto]:
    output, low, high = node.output[0], attribute(node, "low", 0), attribute(node, "high", 0)
    zero = constants.add("zero_float", np.array(0, np.float32))
    nodes: list[NodeProto] = []
    sides = (("Min", "negative", scales[0], (low, 0)), ("Max", "positive", scales[1], (0, high)))
    for op, side, scale, ends in sides:
        part = f"{output}_{side}"
        nodes.append(helper.make_node(op, [node.input[0], zero], [part], name=part))
        nodes += _rounded(part, scale.reshape(()), ends, constants)
    parts = [f"{output}_{side}_rounded" for _, side, *_ in sides]
    return [*nodes, helper.make_node("Add", parts, [output], name=output)]


def _rounded(part: str, scale: npt.NDArray[Any], ends: tuple[int, int], constants: Constants) -> list[NodeProto]:
    """Q and DQ of one side, in int8; a Clip between them where the grid ends before int8 does."""
    grid = [constants.add(f"{part}_scale", scale), constants.add("zero_point_int8_0", np.array(0, np.int8))]
    nodes = [helper.make_node("QuantizeLinear", [part, *grid], [f"{part}_quantized"], name=f"{part}_quantized")]
    if ends not in ((-128, 0), (0, 127)):
        limits = [constants.add(f"int8_{end}", np.array(end, np.int8)) for end in ends]
        nodes.append(helper.make_node("Clip", [nodes[-1].output[0], *limits], [f"{part}_clipped"], name=f"{part}_clipped"))
    last = nodes[-1].output[0]
    return [*nodes, helper.make_node("DequantizeLinear", [last, *grid], [f"{part}_rounded"], name=f"{part}_rounded")]
