"""Weights below 8 bits of operators that run in int8: packed in the file, unpacked to 8 bits when a runtime loads it.

    4 bits  (U)INT4 (opset 21)    Cast
    3 bits  ten in an int32       Div, Mod, Add of 32-bit integers, Cast
    2 bits  four in a byte        likewise

This is arithmetic of constants, which ONNX Runtime 1.32 and OpenVINO 2026.4 do once; the operator then runs on int8 weights as if
they had been stored so. Neither takes a DequantizeLinear of INT4 in front of a convolution into its integer kernel, and
OpenVINO reads no INT2. (8-bit Div in OpenVINO gives wrong numbers: hence 32.)
"""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper

from paredown.deploy.constants import Constants
from paredown.deploy.nodes import attribute, replace_nodes_

Array = npt.NDArray[Any]
_WORDS: dict[int, tuple[Any, int]] = {3: (np.int32, 10), 2: (np.uint8, 4)}  # bits -> type of a word, numbers in it
_KINDS = (np.dtype(np.int8), np.dtype(np.uint8))
_NODES = {8: 0, 4: 90, 3: 900, 2: 900}  # bytes that the unpacking operators take in a file, about


def narrow_weights_(model: ModelProto) -> int:
    """Stores each 8-bit weight in the form that takes the fewest bytes; returns how many got a narrower one. Lossless."""
    constants = Constants(model)
    unpacked: dict[str, str] = {}  # a weight -> the name of its unpacked form
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        value = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if value is not None and value.dtype in _KINDS and not attribute(node, "block_size", 0):
            name = node.input[0]
            bits = narrowest(value)
            if bits < 8 and name not in unpacked:
                unpacked[name] = f"{name}_{value.dtype}"
                nodes += stored(name, value, bits, unpacked[name], constants)
            node.input[0] = unpacked.get(name, name)
        nodes.append(node)
    replace_nodes_(model, nodes)
    return len(unpacked)


def narrowest(value: Array) -> int:
    """8, 4, 3 or 2: the bits that hold the numbers in the fewest bytes, operators counted."""
    fitting = [b for b in _NODES if value.size and _lowest(value, b) <= value.min() and value.max() < _lowest(value, b) + 2**b]
    return min(fitting, key=lambda b: _bytes(value.size, b), default=8)


def packed_words(value: Array, bits: int) -> Array:
    """8-bit numbers of 3 or 2 bits, any shape -> words (n, 1), the first number in the lowest bits; padded with the lowest."""
    kind, count = _WORDS[bits]
    flat = value.astype(np.int64).reshape(-1) - _lowest(value, bits)
    fields = np.pad(flat, (0, -len(flat) % count)).reshape(-1, count)
    words: Array = (fields << bits * np.arange(count)).sum(1, keepdims=True).astype(kind)
    return words


def _lowest(value: Array, bits: int) -> int:
    """The smallest number of so many bits, signed as the value is."""
    return 0 if value.dtype == np.uint8 else -(2 ** (bits - 1))


def _bytes(size: int, bits: int) -> int:
    kind, count = _WORDS.get(bits, (np.uint8, 8 // bits))
    return _NODES[bits] + -(-size // count) * int(np.dtype(kind).itemsize)


def stored(name: str, value: Array, bits: int, output: str, constants: Constants) -> list[NodeProto]:
    """The nodes that give the 8-bit weight `value` in its own type as `output`, from 4, 3 or 2 bits."""
    kind, lowest = helper.np_dtype_to_tensor_dtype(value.dtype), _lowest(value, bits)
    if bits == 4:
        source = constants.add(f"{name}_packed", value.astype(ml_dtypes.int4 if lowest else ml_dtypes.uint4))
        return [helper.make_node("Cast", [source], [output], name=output, to=kind)]
    count = _WORDS[bits][1]
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Cast", [], {"to": TensorProto.INT32}),
        ("Div", [constants.add(f"shifts_{bits}", (2 ** (bits * np.arange(count, dtype=np.int32)))[None])], {}),
        ("Mod", [constants.add(f"fields_{bits}", np.array(2**bits, np.int32))], {}),
        ("Add", [constants.add(f"lowest_{bits}", np.array(lowest, np.int32))], {}),
        ("Cast", [], {"to": kind}),
    ]
    if value.size % count:
        ends = [constants.add(f"{key}_{n}", np.array([n])) for key, n in (("start", 0), ("length", value.size))]
        steps += [("Reshape", [constants.add("flat", np.array([-1]))], {}), ("Slice", ends, {})]
    steps.append(("Reshape", [constants.add(f"{name}_shape", np.array(value.shape))], {}))
    nodes, current = [], constants.add(f"{name}_packed", packed_words(value, bits))
    for index, (op, inputs, attributes) in enumerate(steps):
        made = output if index == len(steps) - 1 else f"{output}_{index}"
        nodes.append(helper.make_node(op, [current, *inputs], [made], name=made, **attributes))
        current = made
    return nodes
