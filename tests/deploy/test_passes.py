import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from paredown.deploy.passes import drop_dead_, name_dimensions_, rename_, strip_


def chain() -> ModelProto:
    """y = relu(x + b); a dead branch reads c; an If reads d from outside."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["d"], ["t"])], "then", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["d"], ["e"])], "else", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    nodes = [
        helper.make_node("Add", ["x", "b"], ["s"], doc_string="/home/user/model.py"),
        helper.make_node("Mul", ["s", "c"], ["dead"]),
        helper.make_node("If", ["flag"], ["chosen"], then_branch=inner, else_branch=other),
        helper.make_node("Add", ["s", "chosen"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    values = {name: np.ones(3, np.float32) for name in "bcd"} | {"flag": np.array(True)}
    shape = ["s77", 3]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["2*s77", 3])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("unused", 1)])


def test_dead_nodes_initializers_and_operator_sets_go() -> None:
    model = chain()
    drop_dead_(model)
    assert [node.op_type for node in model.graph.node] == ["Add", "If", "Add", "Relu"]
    assert {tensor.name for tensor in model.graph.initializer} == {"b", "d", "flag"}
    assert [entry.domain for entry in model.opset_import] == [""]


def test_strip_leaves_no_text_of_the_machine() -> None:
    model = chain()
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack_trace", "/home/user/model.py"
    model.doc_string = model.graph.doc_string = "/home/user"
    strip_(model)
    assert b"/home/user" not in model.SerializeToString()


def test_dimension_symbols_become_names_in_expressions_too() -> None:
    model = chain()
    name_dimensions_(model, {"x": {0: "batch"}})
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "2*batch"


def test_rename_reaches_into_subgraphs() -> None:
    model = chain()
    rename_(model, {"d": "delta", "x": "input"})
    assert model.graph.input[0].name == "input"
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    assert branch.node[0].input[0] == "delta"
    assert "delta" in {tensor.name for tensor in model.graph.initializer}
