"""Reading and rewriting the nodes of an ONNX graph."""

from collections.abc import Iterable
from typing import Any

from onnx import ModelProto, NodeProto, helper


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute, or `default` where the node doesn't set it."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def replace_nodes_(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Makes these the nodes of the graph, in this order; some may be in it already."""
    ordered = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
