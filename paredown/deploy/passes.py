"""What an exported ONNX graph is rid of: dead values, whatever names the machine or the exporter, symbols for dimensions."""

import re

from onnx import GraphProto, ModelProto, NodeProto


def drop_dead_(model: ModelProto) -> None:
    """Removes nodes and initializers that no output depends on, and the declarations of operator sets that nothing uses."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    for index in reversed(range(len(graph.node))):
        if needed & set(graph.node[index].output):
            needed |= _reads(graph.node[index])
        else:
            del graph.node[index]
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
    used = {node.domain for node in graph.node} | {""}
    if used == {""}:
        del model.functions[:]
        for index in reversed(range(len(model.opset_import))):
            if model.opset_import[index].domain not in used:
                del model.opset_import[index]


def _reads(node: NodeProto) -> set[str]:
    """The values that a node reads, those that its subgraphs (If, Loop, Scan) take from outside among them."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                names |= _reads(inner)
            names |= {output.name for output in graph.output}
    return names


def is_closed(model: ModelProto) -> bool:
    """Whether every node of the main graph reads what an input, an initializer or an earlier node gives."""
    graph = model.graph
    known = {"", *(entry.name for entry in graph.input), *(entry.name for entry in graph.initializer)}
    for node in graph.node:
        if not known.issuperset(node.input):
            return False
        known.update(node.output)
    return True


def strip_(model: ModelProto) -> None:
    """Removes documentation, stack traces, source paths, exporter metadata and intermediate shapes, which runtimes infer anew."""
    model.ClearField("doc_string")
    del model.metadata_props[:]
    _strip_graph(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        del function.metadata_props[:]
        for node in function.node:
            _strip_node(node)


def _strip_graph(graph: GraphProto) -> None:
    graph.ClearField("doc_string")
    del graph.metadata_props[:]
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    for entry in [*graph.input, *graph.output, *graph.initializer]:
        entry.ClearField("doc_string")
        del entry.metadata_props[:]
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: NodeProto) -> None:
    node.ClearField("doc_string")
    del node.metadata_props[:]
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            _strip_graph(graph)


def name_dimensions_(model: ModelProto, names: dict[str, dict[int, str]]) -> None:
    """Replaces the exporter's symbols ("s77") by names: names[input][dimension]; expressions of outputs follow."""
    symbols: dict[str, str] = {}
    for entry in model.graph.input:
        dims = entry.type.tensor_type.shape.dim
        for dimension, name in names.get(entry.name, {}).items():
            if dimension < len(dims) and dims[dimension].dim_param:  # a number without dimensions has no batch either
                symbols.setdefault(dims[dimension].dim_param, name)
    for entry in [*model.graph.input, *model.graph.output]:
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda match: symbols.get(match.group(), match.group()), dim.dim_param)


def rename_(model: ModelProto, names: dict[str, str]) -> None:
    """Renames values of the main graph everywhere."""
    graph = model.graph
    for entry in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
        entry.name = names.get(entry.name, entry.name)
    for node in graph.node:
        _rename_node(node, names)


def _rename_node(node: NodeProto, names: dict[str, str]) -> None:
    for field in (node.input, node.output):
        for index, name in enumerate(field):
            if name in names:
                field[index] = names[name]
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                _rename_node(inner, names)
            for output in graph.output:
                output.name = names.get(output.name, output.name)
