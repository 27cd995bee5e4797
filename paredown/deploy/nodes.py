"""Reading and rewriting the nodes of an ONNX graph."""

from collections.abc import Callable, Iterable
from typing import Any

from onnx import ModelProto, NodeProto, helper

MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # every value of one tensor, and nothing else


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute, or `default` where the node doesn't set it."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def order_of(transpose: NodeProto, dimensions: int) -> list[int]:
    """The order in which a Transpose puts the dimensions; reversed where it doesn't say."""
    return list(attribute(transpose, "perm", range(dimensions)[::-1]))


def replace_nodes_(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Makes these the nodes of the graph, in this order; some may be in it already."""
    ordered = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def rewrite_(model: ModelProto, replacement: Callable[[NodeProto], list[NodeProto]]) -> int:
    """Puts what `replacement` gives of a node in its place; [] leaves the node. Returns how many were replaced."""
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        made = replacement(node)
        nodes += made or [node]
        count += bool(made)
    replace_nodes_(model, nodes)
    return count


def originating(nodes: list[NodeProto], source: NodeProto) -> list[NodeProto]:
    """The nodes, with the metadata of the one that they stand for."""
    for node in nodes:
        node.metadata_props.extend(source.metadata_props)
    return nodes


def is_plain(product: NodeProto) -> bool:
    """Whether a MatMul or Gemm takes its first input as it is and scales nothing."""
    scaled = attribute(product, "alpha", 1.0) != 1.0 or attribute(product, "beta", 1.0) != 1.0
    return not scaled and not attribute(product, "transA", 0)
