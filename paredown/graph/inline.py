"""Regions that torch.export wraps in an operator of their own: `with torch.autocast(..., enabled=False)`, `with torch.no_grad()`.

Neither changes what is computed where nothing else casts, so their nodes are put in the place of the wrapper.
"""

import operator

from torch import fx
from torch.export import ExportedProgram

_WRAPPERS = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}  # -> where the wrapped graph stands among the arguments
_ENABLED = 2  # argument of wrap_with_autocast


def inline_(program: ExportedProgram) -> ExportedProgram:
    """The program itself, without such wrappers; a region in which autocast is on stays wrapped."""
    graph = program.graph_module.graph
    found = [node for node in graph.nodes if node.op == "call_function" and _is_neutral(node)]
    for node in found:
        _unwrap_(node)
    if found:
        graph.lint()
        program.graph_module.recompile()
        inline_(program)  # wrappers within wrappers
    return program


def _is_neutral(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", "")
    return name in _WRAPPERS and (name != "wrap_with_autocast" or node.args[_ENABLED] is False)


def _unwrap_(node: fx.Node) -> None:
    place = _WRAPPERS[getattr(node.target, "__name__", "")]
    wrapped, operands = node.args[place], node.args[place + 1 :]
    assert isinstance(wrapped, fx.Node) and node.graph.owning_module is not None  # so torch.export writes them
    inner = node.graph.owning_module.get_submodule(str(wrapped.target))
    assert isinstance(inner, fx.GraphModule)
    given = iter(operands)
    copies: dict[fx.Node, object] = {}
    with node.graph.inserting_before(node):
        for step in inner.graph.nodes:
            if step.op == "placeholder":
                copies[step] = next(given)
            elif step.op == "output":
                _replace_(node, [copies.get(x, x) for x in step.args[0]])
            else:
                copies[step] = node.graph.node_copy(step, lambda x: copies[x])  # type: ignore[arg-type,return-value]  # all are nodes
    if not wrapped.users:
        wrapped.graph.erase_node(wrapped)


def _replace_(node: fx.Node, results: list[object]) -> None:
    """Each `getitem` of the wrapper becomes what it stood for, and keeps its name: the program's signature goes by names."""
    for user in list(node.users):
        assert user.target is operator.getitem  # a wrapper returns a tuple
        value = results[user.args[1]]  # type: ignore[index]  # an integer
        user.replace_all_uses_with(value)  # type: ignore[arg-type]  # a node
        node.graph.erase_node(user)
        if isinstance(value, fx.Node) and value.op == "call_function":
            value._rename(user.name)
    node.graph.erase_node(node)
