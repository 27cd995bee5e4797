"""Our fake-quantize operator in ONNX: a placeholder while the graph is built, then QuantizeLinear and DequantizeLinear.

A constant (a weight) becomes an 8-bit initializer with a DequantizeLinear behind it, and the bias of an operator whose
input and weight are dequantized a 32-bit one with scale s_x * s_w: what QLinearConv and QGemm expect.
"""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper
from onnx.defs import OpSchema

from paredown.core.errors import ExportError
from paredown.deploy import packed
from paredown.deploy.constants import Constants
from paredown.deploy.nodes import MOVES, attribute, order_of, originating, replace_nodes_, rewrite_

DOMAIN, PLACEHOLDER = "paredown", "FakeQuantize"
_TYPES: tuple[Any, ...] = (np.uint8, np.int8, np.uint16, np.int16, np.int32)
_BIASED = ("Conv", "ConvTranspose", "Gemm")
_SAME_GRID = (*MOVES, "Gather", "MaxPool", "Slice", "Split")


def translate() -> Any:
    """The onnxscript translation of `paredown::fake_quantize`: one placeholder node, lowered later by `lower_`."""
    from onnxscript import values

    operator = values.Op(values.Opset(DOMAIN, 1), PLACEHOLDER, _schema())

    def fake_quantize(x: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int, block: int = 0) -> Any:
        return operator(x, scale, zero_point, axis=axis, low=low, high=high, block=block)

    return fake_quantize


def _schema() -> OpSchema:
    """(x: float, scale: float, zero_point: int32; axis, low, high, block) -> y: float."""
    kinds = {"x": "tensor(float)", "scale": "tensor(float)", "zero_point": "tensor(int32)"}
    return OpSchema(
        PLACEHOLDER,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(name, kind) for name, kind in kinds.items()],
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
        attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT, "") for name in ("axis", "low", "high", "block")],
    )


def lower_(model: ModelProto) -> int:
    """Replaces every placeholder; returns how many there were.

    Raises ExportError where a scale isn't constant, or where an activation's grid is wider than 16 bits.
    """
    constants = Constants(model)
    stored = any(_is_placeholder(node) and attribute(node, "block", 0) for node in model.graph.node)  # scales per group

    def replacement(node: NodeProto) -> list[NodeProto]:
        if not _is_placeholder(node):
            return []
        return _stored(node, constants) if stored and constants.get(node.input[0]) is not None else _lowered(node, constants)

    count = rewrite_(model, replacement)
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return count


def _is_placeholder(node: NodeProto) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, PLACEHOLDER)


def _lowered(node: NodeProto, constants: Constants) -> list[NodeProto]:
    """Q and DQ, or for a constant DQ alone."""
    settings = {a.name: a.i for a in node.attribute}
    axis, low, high = settings["axis"], settings["low"], settings["high"]
    x, output = node.input[0], node.output[0]
    scale, zero_point = _grid(node, constants, per_tensor=axis < 0)
    kind, first, last = _type(node, low, high)
    if ((zero_point < first) | (zero_point > last)).any():
        raise ExportError(
            f"a zero point must be in [{first}, {last}]", got=f"{zero_point.min()} at {node.name}", remedy="calibrate again"
        )
    names = [constants.add(f"{output}_scale", scale.astype(np.float32))]
    if kind is not np.int32 or zero_point.any():  # of a bias it is 0, which is what leaving it out means
        names.append(_zero_point(zero_point.astype(kind), constants))
    along = {} if axis < 0 else {"axis": axis}
    value = constants.get(x)
    if value is not None:
        q = _quantized(value, scale, zero_point, axis).astype(np.float64).clip(low, high).astype(kind)
        return [_node("DequantizeLinear", [constants.add(f"{x}_quantized", q), *names], output, node, along)]
    if kind is np.int32:
        raise ExportError(
            "an activation's grid must fit 16 bits",
            got=f"[{low}, {high}] at {node.name}",
            remedy="write activations=Activations(bits=8)",
        )
    quantized, clipped = f"{output}_quantized", f"{output}_clipped"
    nodes = [_node("QuantizeLinear", [x, *names], quantized, node, along)]
    if (low, high) != (first, last):  # fewer bits: between Q and DQ, so that operators still fuse with either
        ends = [constants.add(f"{np.dtype(kind).name}_{end}", np.array(end, kind)) for end in (low, high)]
        nodes.append(_node("Clip", [quantized, *ends], clipped, node, {}))
    return [*nodes, _node("DequantizeLinear", [nodes[-1].output[0], *names], output, node, along)]


def _stored(node: NodeProto, constants: Constants) -> list[NodeProto]:
    """The nodes that give a weight from its packed form."""
    settings = {a.name: a.i for a in node.attribute}
    low, high, block = settings["low"], settings["high"], settings.get("block", 0)
    scale, zero_point = _grid(node, constants, per_tensor=False)
    value, kind = constants.get(node.input[0]), packed.stored_type(low, high)
    assert value is not None  # that is why it is called
    if kind is None:
        raise ExportError(
            "a stored weight must fit 8 bits", got=f"[{low}, {high}] at {node.name}", remedy="quantize to 4 or 8 bits"
        )
    s, z = (_per_number(t, value, block) for t in (scale, zero_point))
    q = (np.round(value / s.astype(value.dtype)) + z).astype(np.float64).clip(low, high)
    made = packed.stored_weight(
        node.input[0], q, scale, zero_point, block=block, kind=kind, output=node.output[0], constants=constants
    )
    return originating(made, node)


def _per_number(grid: npt.NDArray[Any], value: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """(rows,) or (rows, blocks) -> a shape that broadcasts with the weight's."""
    if not block:
        return grid.reshape(-1, *[1] * (value.ndim - 1))
    whole: npt.NDArray[Any] = np.repeat(grid, block, 1)[:, : int(np.prod(value.shape[1:]))].reshape(value.shape)
    return whole


def _type(node: NodeProto, low: int, high: int) -> tuple[Any, int, int]:
    """The narrowest integer type that holds a grid, with its ends; 32 bits are for biases."""
    for kind in _TYPES:
        ends = np.iinfo(kind)
        if ends.min <= low < high <= ends.max:
            return kind, int(ends.min), int(ends.max)
    raise ExportError(
        "a grid must fit 16 bits (a bias: 32)", got=f"[{low}, {high}] at {node.name}", remedy="quantize with bits=8"
    )


def _zero_point(value: npt.NDArray[Any], constants: Constants) -> str:
    """One initializer for all equal zero points: "zero_point_uint8_114", "zero_point_int8_0_x16"."""
    first = int(value.flat[0]) if value.size else 0
    if (value == first).all():
        return constants.add(f"zero_point_{value.dtype}_{first}" + (f"_x{value.size}" if value.ndim else ""), value)
    return constants.add(f"zero_point_{value.dtype}", value)


def _grid(node: NodeProto, constants: Constants, *, per_tensor: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Scale and zero point, () or (channels,). Raises ExportError where they aren't constant or not positive."""
    scale, zero_point = constants.get(node.input[1]), constants.get(node.input[2])
    if scale is None or zero_point is None:
        raise ExportError(
            "scale and zero point of a quantizer must be constant", got=node.name, remedy="make them buffers of the model"
        )
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ExportError(
            "a quantizer's scale must be positive and finite", got=f"{scale.min()} at {node.name}", remedy="calibrate it first"
        )
    return (scale.reshape(()), zero_point.reshape(())) if per_tensor else (scale, zero_point)


def _quantized(value: npt.NDArray[Any], scale: npt.NDArray[Any], zero_point: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """round(x / scale) + zero_point, before the clamp; in float32, as the torch operator does it."""
    shape = [-1 if d == axis else 1 for d in range(value.ndim)] if axis >= 0 else []
    rounded: npt.NDArray[Any] = np.round(value / scale.astype(value.dtype).reshape(shape)) + zero_point.reshape(shape)
    return rounded


def _node(op: str, inputs: list[str], output: str, like: NodeProto, attributes: dict[str, Any]) -> NodeProto:
    """A node named after its output, with the metadata of the one it replaces."""
    return originating([helper.make_node(op, inputs, [output], name=output, **attributes)], like)[0]


def transpose_weights_(model: ModelProto) -> int:
    """Transpose of a dequantized constant -> DequantizeLinear of the transposed constant; how many.

    A linear layer over more than 2 dimensions exports as MatMul(x, Transpose(w)). A table that is a head too is stored once: its
    integers are transposed by the runtime, when it loads the file.
    """
    constants = Constants(model)
    made = {node.output[0]: node for node in model.graph.node}
    readers = Counter(name for node in model.graph.node for name in node.input)

    def replacement(node: NodeProto) -> list[NodeProto]:
        weight = made.get(node.input[0]) if node.op_type == "Transpose" else None
        value = constants.get(weight.input[0]) if weight is not None and weight.op_type == "DequantizeLinear" else None
        if weight is None or value is None:
            return []
        shared = readers[weight.output[0]] > 1
        return [] if shared and packed.is_stored(weight) else _transposed_weight(node, weight, value, constants, shared=shared)

    return rewrite_(model, replacement)


def _transposed_weight(
    node: NodeProto, weight: NodeProto, value: npt.NDArray[Any], constants: Constants, *, shared: bool
) -> list[NodeProto]:
    """value: of the constant that `weight` dequantizes; `node` transposes the result."""
    order = order_of(node, value.ndim)
    axis, block = attribute(weight, "axis", 1) % value.ndim, attribute(weight, "block_size", 0)
    along = {"axis": order.index(axis)} if constants.rank(weight.input[1]) > 0 else {}
    grids = list(weight.input[1:])
    if block:
        grids = [constants.add(f"{grid}_transposed", _transposed(constants, grid, order)) for grid in grids]
        along["block_size"] = block
    nodes: list[NodeProto] = []
    if shared:
        name = f"{node.output[0]}_integers"
        nodes.append(_node("Transpose", [weight.input[0]], name, node, {"perm": order}))
    else:
        name = constants.add(f"{weight.input[0]}_transposed", np.ascontiguousarray(value.transpose(order)))
    return [*nodes, _node("DequantizeLinear", [name, *grids], node.output[0], node, along)]


def _transposed(constants: Constants, name: str, order: list[int]) -> npt.NDArray[Any]:
    value = constants.get(name)
    assert value is not None  # the grids of a stored weight are initializers
    return np.ascontiguousarray(value.transpose(order))


def quantize_biases_(model: ModelProto) -> int:
    """Float biases of operators on dequantized inputs and weights -> 32-bit ones; how many.

    b_q = round(b / (s_x * s_w)), zero point 0. Left in float where 32 bits don't hold it.
    """
    constants = Constants(model)
    made = {node.output[0]: node for node in model.graph.node}
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        added = _bias(node, made, constants) if node.op_type in _BIASED and len(node.input) == 3 else None
        if added is not None:
            node.input[2] = added.output[0]
            nodes.append(added)
            count += 1
        nodes.append(node)
    replace_nodes_(model, nodes)
    return count


def _source(name: str, made: dict[str, NodeProto]) -> NodeProto | None:
    """The node that put `name` on its grid, looking through operators that only move values."""
    node = made.get(name)
    while node is not None and node.op_type in _SAME_GRID:
        node = made.get(node.input[0])
    return node


def _bias(node: NodeProto, made: dict[str, NodeProto], constants: Constants) -> NodeProto | None:
    """The DequantizeLinear of a 32-bit bias, or None where the bias has to stay in float."""
    x, weight = (_source(name, made) for name in node.input[:2])
    bias = constants.get(node.input[2])
    if bias is None or bias.ndim != 1 or x is None or weight is None or {x.op_type, weight.op_type} != {"DequantizeLinear"}:
        return None
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return None
    s_x, s_w = constants.get(x.input[1]), constants.get(weight.input[1])
    if s_x is None or s_w is None or s_x.ndim:
        return None
    scale = np.broadcast_to((s_x * s_w).astype(np.float32), bias.shape)
    q = np.round(bias.astype(np.float64) / scale)
    if np.abs(q).max(initial=0) > np.iinfo(np.int32).max:
        return None
    name, output = node.input[2], f"{node.output[0]}_bias"
    inputs = [constants.add(f"{output}_quantized", q.astype(np.int32)), constants.add(f"{output}_scale", scale.copy())]
    return _node("DequantizeLinear", inputs, f"{name}_{output}", node, {"axis": 0})
