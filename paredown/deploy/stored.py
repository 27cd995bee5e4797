"""Weights stored as 16-bit floats, or as indices into a codebook, in ONNX: standard operators that give them back in fp32.

    fp16, bf16   initializer of that type          Cast
    palette      indices in 4 or 8 bits, codebook   Cast, Gather

This is arithmetic of constants, which ONNX Runtime 1.32 and OpenVINO 2026.4 do once, when they load a file: half the bytes, or
fewer, at the speed and with the memory of fp32. Of real 16-bit graphs neither gains here: ONNX Runtime has no CPU kernels for
them and puts a Cast around each operator, OpenVINO computes them in fp32 unless the processor has the instructions.
"""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.defs import OpSchema

from paredown.core.errors import ExportError
from paredown.deploy.constants import Constants
from paredown.deploy.nodes import attribute, originating, rewrite_

DOMAIN, FLOAT, LOOK_UP = "paredown", "RoundFloat", "LookUp"
NARROW = 16  # codes that 4-bit indices reach
_FLOATS: dict[int, Any] = {5: np.float16, 8: ml_dtypes.bfloat16}  # exponent bits -> type


def translate_float() -> Any:
    """The onnxscript translation of `paredown::round_float`: one placeholder node, lowered later by `lower_`."""
    operator = _operator(FLOAT, ["x"], ["exponent_bits"])

    def round_float(x: Any, exponent_bits: int) -> Any:
        return operator(x, exponent_bits=exponent_bits)

    return round_float


def translate_look_up() -> Any:
    """Likewise of `paredown::look_up`."""
    operator = _operator(LOOK_UP, ["x", "codebook"], [])

    def look_up(x: Any, codebook: Any) -> Any:
        return operator(x, codebook)

    return look_up


def _operator(name: str, inputs: list[str], attributes: list[str]) -> Any:
    from onnxscript import values

    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(each, "tensor(float)") for each in inputs],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
        attributes=[OpSchema.Attribute(each, OpSchema.AttrType.INT, "") for each in attributes],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)


def lower_(model: ModelProto) -> int:
    """Replaces every placeholder; returns how many there were. Raises ExportError where a weight isn't constant."""
    constants = Constants(model)

    def replacement(node: NodeProto) -> list[NodeProto]:
        if node.domain != DOMAIN or node.op_type not in (FLOAT, LOOK_UP):
            return []
        value = constants.get(node.input[0])
        if value is None:
            raise ExportError("a stored weight must be constant", got=node.name, remedy="protect its module")
        return originating((_half if node.op_type == FLOAT else _looked_up)(node, value, constants), node)

    return rewrite_(model, replacement)


def _half(node: NodeProto, value: npt.NDArray[Any], constants: Constants) -> list[NodeProto]:
    kind = _FLOATS[attribute(node, "exponent_bits", 5)]
    stored = constants.add(f"{node.input[0]}_{np.dtype(kind).name}", value.astype(kind))
    return [helper.make_node("Cast", [stored], [node.output[0]], name=node.output[0], to=TensorProto.FLOAT)]


def _looked_up(node: NodeProto, value: npt.NDArray[Any], constants: Constants) -> list[NodeProto]:
    output, codes = node.output[0], constants.get(node.input[1])
    if codes is None or not np.isfinite(codes).all():
        raise ExportError("a codebook must be found before it is written", got=node.name, remedy="call paredown.quantize")
    indices = np.searchsorted((codes[1:] + codes[:-1]) / 2, value)
    kind = ml_dtypes.uint4 if len(codes) <= NARROW else np.uint8
    stored = constants.add(f"{node.input[0]}_indices", indices.astype(kind))
    return [
        helper.make_node("Cast", [stored], [f"{output}_indices"], name=f"{output}_indices", to=TensorProto.INT32),
        helper.make_node("Gather", [node.input[1], f"{output}_indices"], [output], name=output, axis=0),
    ]
