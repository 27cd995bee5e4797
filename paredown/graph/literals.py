"""Which atoms' number the class may hold as a number of its own: those that pass through an operator that is told sizes.

`view(n, 12, 64)`, `split(x, [6, 10])`, `x[:, :8]`: a cut may break these, or make them mean something else. Layers of torch whose
attributes surgery corrects, elementwise operators, poolings, and reshapes to -1 are told nothing.
"""

import sys
from collections.abc import Iterator

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from paredown.graph import rules_attention as products
from paredown.graph import rules_layers as layers
from paredown.graph import rules_shapes as shapes
from paredown.graph import rules_statistics as statistics
from paredown.graph.labels import Array
from paredown.graph.operation import Knowledge, Operation, short_name
from paredown.graph.rules import Rule, rule_of
from paredown.graph.trace import module_path

_INNOCENT: frozenset[Rule] = frozenset((
    layers.elementwise, layers.linear, layers.embedding, layers.over_space,
    products.matrix_product, products.biased_product, products.einsum, products.attention,
    statistics.per_channel, statistics.along, statistics.reduction,
    shapes.first_operand, shapes.reorder, shapes.concatenate, shapes.stack, shapes.item,
))  # fmt: skip
_UNTOLD = frozenset(("flatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "expand_as"))
_LAYERS: dict[str, tuple[type[nn.Module], ...]] = {  # innocent where one of torch's own layers calls them
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (_ConvNd,)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (_ConvTransposeNd,)),
    "layer_norm": (nn.LayerNorm,),
    "rms_norm": (nn.RMSNorm,),
    "group_norm": (nn.GroupNorm,),
}
_ALONG = frozenset(("split", "split_with_sizes", "chunk", "slice", "narrow", "select", "unbind", "index_select"))
_SIZED = frozenset(("view", "reshape", "_unsafe_view", "expand"))


def literal_atoms(known: Knowledge) -> frozenset[int]:
    """For the nodes of a graph that were followed."""
    labels = [labels for node in known.dims if node.op == "call_function" for labels in _told(Operation(node, known))]
    atoms = known.labels.owners(np.concatenate([np.zeros(0, dtype=np.int64), *labels]))[0]
    return frozenset(np.unique(atoms).tolist())


def _told(op: Operation) -> Iterator[Array]:
    """Labels of the dimensions of whose size an operator is told."""
    name = short_name(op.node)
    if rule_of(op) in _INNOCENT or name in _UNTOLD or _is_own(op, name):
        return
    dims: tuple[Array | None, ...]
    if name in _ALONG:
        x = op["self"]
        dims = () if _is_whole(op) else (op.dims(x)[op.axis(x, op.get("dim") or 0)],)
    elif name in {"pad", "constant_pad_nd"}:
        dims = tuple(labels for i, labels in enumerate(reversed(op.dims(op["self"]))) if any(op["pad"][2 * i : 2 * i + 2]))
    elif name in _SIZED:
        sizes = op.get("size", "shape")
        dims = tuple(d for d, size in zip(op.known.dims[op.node][0], sizes, strict=True) if type(size) is int and size != -1)
    else:
        dims = tuple(d for x in op.operands() for each in op.known.dims[x] for d in each)
    yield from (labels for labels in dims if labels is not None)


def _is_own(op: Operation, name: str) -> bool:
    """Whether a layer of torch calls this, or a convolution without groups, which is told no size."""
    if isinstance(op.known.modules.get(module_path(op.node)), _LAYERS.get(name, ())):
        return True
    return name.startswith("conv") and name in _LAYERS and int(op["groups"]) == 1


def _is_whole(op: Operation) -> bool:
    """Whether a slice takes everything: x[:, ...]."""
    if short_name(op.node) != "slice":
        return False
    start, end = op.get("start") or 0, op.get("end")
    return start == 0 and op["step"] == 1 and (end is None or (type(end) is int and end >= sys.maxsize))
