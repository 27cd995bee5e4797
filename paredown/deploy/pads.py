"""Padding with zeros between two quantizers goes into the convolution that reads it.

A runtime fuses Pad into Conv in a float file; between quantizers it stays an operator of its own, in float. Zero is exact on
every grid, and a convolution pads with its zero point, so the outputs are the same to the bit.
"""

import numpy as np
from onnx import ModelProto, NodeProto, helper

from paredown.deploy.constants import Constants
from paredown.deploy.nodes import attribute


def absorb_pads_(model: ModelProto) -> int:
    """Of x -> Pad -> Q -> DQ -> Conv, x itself on that grid, leaves x -> Conv; returns how many convolutions took one in."""
    constants = Constants(model)
    made = {name: node for node in model.graph.node for name in node.output}
    count = 0
    for node in model.graph.node:
        pad = _pad(node, made, constants) if node.op_type == "Conv" and _is_explicit(node) else None
        amounts = None if pad is None else _amounts(pad, constants)
        if pad is not None and amounts is not None:
            _pad_by_(node, amounts)
            node.input[0] = pad.input[0]
            count += 1
    return count


def _is_explicit(convolution: NodeProto) -> bool:
    """Whether the padding is given in numbers."""
    return bool(attribute(convolution, "auto_pad", b"NOTSET") == b"NOTSET")


def _pad(convolution: NodeProto, made: dict[str, NodeProto], constants: Constants) -> NodeProto | None:
    """The Pad whose quantized output a convolution reads, where its input stands on the same grid."""
    dequantize = made.get(convolution.input[0])
    quantize = made.get(dequantize.input[0]) if dequantize is not None and dequantize.op_type == "DequantizeLinear" else None
    pad = made.get(quantize.input[0]) if quantize is not None and quantize.op_type == "QuantizeLinear" else None
    before = made.get(pad.input[0]) if pad is not None and pad.op_type == "Pad" else None
    if dequantize is None or before is None or before.op_type != "DequantizeLinear":
        return None
    same = [_value(before, i, constants) == _value(dequantize, i, constants) is not None for i in (1, 2)]
    return pad if all(same) else None


def _value(node: NodeProto, index: int, constants: Constants) -> tuple[str, bytes] | None:
    """Type and value of a scale or a zero point; None where it isn't a constant."""
    value = constants.get(node.input[index]) if len(node.input) > index else None
    return None if value is None else (str(value.dtype), value.tobytes())


def _amounts(pad: NodeProto, constants: Constants) -> list[int] | None:
    """Of the spatial dimensions, all beginnings and then all ends; None where a Pad does something else than add zeros there."""
    amounts = constants.get(pad.input[1])
    value = constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(())
    plain = attribute(pad, "mode", b"constant") == b"constant" and not (len(pad.input) > 3 and pad.input[3])
    if amounts is None or value is None or not plain or value != 0:
        return None
    starts, ends = amounts.reshape(2, -1).tolist()
    return None if any((*starts[:2], *ends[:2])) or min(*starts, *ends) < 0 else [*starts[2:], *ends[2:]]


def _pad_by_(convolution: NodeProto, amounts: list[int]) -> None:
    own = attribute(convolution, "pads", [0] * len(amounts))
    kept = [entry for entry in convolution.attribute if entry.name != "pads"]
    del convolution.attribute[:]
    convolution.attribute.extend([*kept, helper.make_attribute("pads", [a + b for a, b in zip(own, amounts, strict=True)])])
