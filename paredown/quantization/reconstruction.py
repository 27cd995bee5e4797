"""Block reconstruction (BRECQ, Li et al., arXiv:2102.05426, section 3.2): rounding learned for a residual block at a time.

The rounding of all weights of a block is learned together, against the block's output in the float model: what one layer
loses another of the same block may make up for. The variables are those of AdaRound. The paper weighs the squared error by the
squared gradient of the loss; here every output counts the same, which needs no labels. What is a block, the graph of the float
model says (`graph/blocks.py`).
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import fx, nn

from paredown.core.errors import TaskError
from paredown.graph.blocks import blocks_of
from paredown.graph.trace import Dynamic, module_path
from paredown.quantization.layers import Layer, layers_of, part_of
from paredown.quantization.model import QuantizedModel
from paredown.quantization.rounding import Rounding, learn_
from paredown.task.batches import Inputs


@dataclass(frozen=True)
class Block:
    """nodes: in graph order, the last gives the block's result. path: of the module that it is."""

    path: str
    layers: tuple[Layer, ...]
    nodes: tuple[fx.Node, ...]


def named_blocks(source: nn.Module, inputs: Inputs, dynamic: Dynamic | None) -> tuple[str, ...]:
    """The modules of a float model that are blocks, in the order in which they run; none where nothing is one."""
    try:
        return tuple(block.name for block in blocks_of(source, inputs, dynamic=dynamic))
    except TaskError:
        return ()


def parts_of(model: QuantizedModel, names: Collection[str]) -> tuple[Block, ...]:
    """The layers of each named module are one block, if one tensor alone leaves it; all other layers stand alone."""

    def owner(layer: Layer) -> str:
        return next((name for name in names if f"{layer.path}.".startswith(f"{name}.")), "")

    found: list[Block] = []
    for path, group in groupby(layers_of(model), key=owner):
        layers = tuple(group)
        nodes = _inside(model, path) if path and len(layers) > 1 else ()
        whole = nodes and {layer.node for layer in layers} <= set(nodes)
        if whole and len(_leaving(nodes)) == 1:
            found.append(Block(path, layers, nodes[: nodes.index(_leaving(nodes)[0]) + 1]))
        else:
            found += [Block(layer.path, (layer,), (layer.node,)) for layer in layers]
    return tuple(found)


def reconstruct_(
    model: QuantizedModel, batches: Sequence[Inputs], names: Collection[str], config: Rounding | None = None
) -> tuple[str, ...]:
    """Learns the rounding block after block, each on what the rounded ones before it give; returns their paths.

    The model is calibrated; batches: inputs; names: of the modules that are blocks. Afterwards the weights lie on their grids.
    """
    reference = copy.deepcopy(model)
    blocks = parts_of(model, names)
    for block in blocks:
        learn_(model, reference, part_of(model, block.nodes), block.layers, batches, config or Rounding())
    return tuple(block.path for block in blocks)


def _inside(model: QuantizedModel, path: str) -> tuple[fx.Node, ...]:
    """The operators and activation quantizers of a module, in graph order."""
    return tuple(
        node
        for node in model.graph.nodes
        if (module_path(node) == path or module_path(node).startswith(f"{path}."))
        and node.op in ("call_function", "call_module")
        and not str(node.target).endswith((":weight", ":bias"))
    )


def _leaving(nodes: tuple[fx.Node, ...]) -> list[fx.Node]:
    """Those that something outside reads."""
    return [node for node in nodes if any(user not in nodes for user in node.users)]
