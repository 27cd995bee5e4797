"""Weights that are stored on a grid and computed with in float: DequantizeLinear of an initializer in 4 or 8 bits, opset 21.

Two 4-bit numbers share a byte. A scale per group is a blocked DequantizeLinear over the matrix (rows, numbers of a row).
ONNX Runtime 1.32 makes MatMulNBits of one in front of MatMul, if it stands there as (in, out). By default that rounds
activations to 8 bits as they come; our sessions ask for float (`onnxruntime.py`). OpenVINO 2026.4 reads blocks of full length
only: a short last one is filled, and cut off.
"""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from paredown.deploy.constants import Constants
from paredown.deploy.nodes import attribute, is_plain, originating, rewrite_

OPSET = 21
_RECURRENT = ("LSTM", "GRU", "RNN")
_MOVES = ("Slice", "Concat", "Unsqueeze", "Squeeze", "Split", "Transpose", "Reshape", "Identity")
_TYPES: tuple[tuple[Any, int, int], ...] = (
    (ml_dtypes.int4, -8, 7), (ml_dtypes.uint4, 0, 15), (np.int8, -128, 127), (np.uint8, 0, 255),
)  # fmt: skip


def stored_type(low: int, high: int) -> Any:
    """The narrowest type that holds low..high; None where that is none of 4 or 8 bits."""
    return next((kind for kind, first, last in _TYPES if first <= low < high <= last), None)


def stored_weight(
    name: str,
    integers: npt.NDArray[Any],
    scale: npt.NDArray[Any],
    zero_point: npt.NDArray[Any],
    *,
    block: int,
    kind: Any,
    output: str,
    constants: Constants,
) -> list[NodeProto]:
    """The nodes that give the weight as `output`.

    integers: in the weight's shape (rows, ...); scale, zero_point: (rows,), or (rows, blocks) where block > 0.
    """
    shape, matrix = integers.shape, integers
    if block:
        matrix = integers.reshape(shape[0], -1)
        matrix = np.pad(matrix, ((0, 0), (0, scale.shape[1] * block - matrix.shape[1])))
    inputs = [constants.add(f"{name}_quantized", matrix.astype(kind)), constants.add(f"{output}_scale", scale.astype(np.float32))]
    if zero_point.any():
        inputs.append(constants.add(f"{output}_zero_point", zero_point.astype(kind)))
    along = {"axis": 1, "block_size": block} if block else {"axis": 0}
    nodes = [helper.make_node("DequantizeLinear", inputs, [output], name=output, **along)]
    length = int(np.prod(shape[1:]))
    if matrix.shape[1:] != shape[1:] and matrix.shape[1] != length:
        ends = [constants.add(f"{output}_{key}", np.array([n])) for key, n in (("start", 0), ("end", length), ("axis", 1))]
        _behind_(nodes, "Slice", ends, output, "filled")
    if len(shape) != len(matrix.shape):
        _behind_(nodes, "Reshape", [constants.add(f"{output}_shape", np.array(shape))], output, "matrix")
    return nodes


def _behind_(nodes: list[NodeProto], op: str, inputs: list[str], output: str, before: str) -> None:
    """Another node, which gives `output`; what the last one gave gets a name of its own."""
    nodes[-1].output[0] = nodes[-1].name = f"{output}_{before}"
    nodes.append(helper.make_node(op, [nodes[-1].output[0], *inputs], [output], name=output))


def gemms_as_matmuls_(model: ModelProto) -> int:
    """Gemm(x, w, b) over a stored weight -> Add(MatMul(x, Transpose(w)), b), which a runtime can keep packed; how many."""
    stored = {n.output[0] for n in model.graph.node if is_stored(n)}

    def replacement(node: NodeProto) -> list[NodeProto]:
        fits = node.op_type == "Gemm" and node.input[1] in stored and attribute(node, "transB", 0) and is_plain(node)
        return _matmul(node) if fits else []

    return rewrite_(model, replacement)


def fold_at_load_(model: ModelProto) -> int:
    """DequantizeLinear of a constant that only lookups or recurrent layers read -> Cast and Mul; how many.

    They compute in float. A runtime folds plain arithmetic of constants when it loads a file, and keeps a DequantizeLinear, which
    would then run in every call.
    """
    constants = Constants(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def replacement(node: NodeProto) -> list[NodeProto]:
        fits = node.op_type == "DequantizeLinear" and _in_float(node.output[0], readers)
        return _unfolded(node, constants) if fits else []

    return rewrite_(model, replacement)


def _in_float(name: str, readers: dict[str, list[NodeProto]]) -> bool:
    """Whether a constant goes to nothing but lookups and recurrent layers, directly or through operators that move it."""
    return name in readers and all(
        node.op_type in _RECURRENT
        or (node.op_type == "Gather" and node.input[0] == name and attribute(node, "axis", 0) == 0)
        or (node.op_type in _MOVES and _in_float(node.output[0], readers))
        for node in readers[name]
    )


def _unfolded(node: NodeProto, constants: Constants) -> list[NodeProto]:
    """Cast and Mul, [] where the value isn't an 8-bit constant with one scale per channel and zero points of 0."""
    value, scale = constants.get(node.input[0]), constants.get(node.input[1])
    zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
    if value is None or scale is None or value.dtype != np.int8 or attribute(node, "block_size", 0):
        return []
    if zero_point is not None and zero_point.any():
        return []
    output, axis = node.output[0], attribute(node, "axis", 1)
    shape = [-1 if d == axis else 1 for d in range(value.ndim)] if scale.ndim else []
    factor = constants.add(f"{output}_factor", scale.reshape(shape))
    floats = f"{output}_floats"
    made = [
        helper.make_node("Cast", [node.input[0]], [floats], name=floats, to=1),
        helper.make_node("Mul", [floats, factor], [output], name=output),
    ]
    return originating(made, node)


def is_stored(node: NodeProto) -> bool:
    """Whether this is the DequantizeLinear of a weight whose operator computes in float (it has no zero point, or blocks)."""
    blocked = attribute(node, "block_size", 0) > 0
    return node.op_type == "DequantizeLinear" and (blocked or len(node.input) == 2)


def _matmul(gemm: NodeProto) -> list[NodeProto]:
    x, weight, *bias = gemm.input
    output = gemm.output[0]
    product = f"{output}_product" if bias else output
    nodes = [
        helper.make_node("Transpose", [weight], [f"{output}_weight"], name=f"{output}_weight", perm=[1, 0]),
        helper.make_node("MatMul", [x, f"{output}_weight"], [product], name=product),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [product, bias[0]], [output], name=output))
    return originating(nodes, gemm)
