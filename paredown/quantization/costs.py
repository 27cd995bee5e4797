"""What each choice of bits costs a layer: tables (layers, choices) of bytes, bit operations, or measured milliseconds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from paredown.measure.latency_table import LatencyTable
from paredown.quantization.layers import layers_of, unquantized, values_at
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import FLOAT, BitWidths
from paredown.task.batches import Inputs, batch_size

Table = npt.NDArray[np.float64]
STORAGE = {2: 2.0, 3: 3.2, 4: 4.0}  # bits that one weight takes in a file (ten of 3 bits in an int32)
READS = ":reads"  # behind a path, in a table of latencies: of the bits of what the layer reads


@dataclass(frozen=True)
class Facts:
    """One layer: its module path, its weights, its output channels, the MACs of one sample. Of a module that runs again the
    weights and channels are counted at its first run alone.
    """

    path: str
    parameters: int
    rows: int
    macs: int


def facts_of(model: QuantizedModel, inputs: Inputs) -> tuple[Facts, ...]:
    """The layers in the order of all tables."""
    layers = layers_of(model)
    with torch.no_grad(), unquantized(model):
        outputs = values_at(model, [layer.node for layer in layers], inputs)
    found, counted = [], set[str]()
    for layer, y in zip(layers, outputs, strict=True):
        weight, again = layer.weight(model), layer.weight_path in counted
        counted.add(layer.weight_path)
        macs = y.numel() // batch_size(inputs) * weight[0].numel()
        found.append(Facts(layer.path, 0 if again else weight.numel(), 0 if again else weight.shape[0], macs))
    return tuple(found)


def stored_bits(bits: int) -> float:
    """What a weight of so many bits takes in a file."""
    return STORAGE.get(bits, next(float(width) for width in (8, 16, 32) if bits <= width))


def stored_table(facts: Sequence[Facts], choices: Sequence[BitWidths]) -> Table:
    """Bits of the weights as they lie in the file, scales left out."""
    return np.array([[f.parameters * stored_bits(c.weight_bits) for c in choices] for f in facts], dtype=np.float64)


def size_table(facts: Sequence[Facts], choices: Sequence[BitWidths]) -> Table:
    """Bytes of the weights as stored, with their scales: 4 bytes for each output channel or group."""
    return np.array([[stored_bytes(f, c) for c in choices] for f in facts], dtype=np.float64)


def bops_table(facts: Sequence[Facts], choices: Sequence[BitWidths]) -> Table:
    """Bit operations of one sample."""
    return np.array([[f.macs * c.weight_bits * c.activation_bits for c in choices] for f in facts], dtype=np.float64)


def latency_table(facts: Sequence[Facts], choices: Sequence[BitWidths], measured: LatencyTable) -> Table:
    """ms, of which each layer bears an equal part of the int8 model's, and what that takes more with the layer as the choice is.

    measured: of the model in int8, and with one layer alone changed: under its path, at 32 bits in float, at 16 in these; under
    its path and READS, what it reads in so many bits. Conversions around it are included; fewer bits of weights take no time.
    """
    base, share = measured.base_ms, measured.base_ms / max(len(facts), 1)

    def more(f: Facts, c: BitWidths) -> float:
        if c.wide:
            return measured.at(f.path, max(c.weight_bits, c.activation_bits)) - base
        return measured.at(f.path + READS, c.activation_bits) - base if c.activation_bits < 8 else 0.0

    return np.array([[share + more(f, c) for c in choices] for f in facts])


def stored_bytes(f: Facts, c: BitWidths) -> float:
    if c.weight_bits == FLOAT:
        return 4.0 * f.parameters
    if not f.parameters:
        return 0.0
    bits = stored_bits(c.weight_bits)
    scales = f.rows if not c.group else f.rows * -(-f.parameters // f.rows // c.group)
    return f.parameters * bits / 8 + 4.0 * scales
