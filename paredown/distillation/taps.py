"""Taps in the graph of a model that has no modules to hook: what reaches the operators of a module, and what they give."""

import copy
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, fx

from paredown.core.errors import TaskError
from paredown.graph.trace import module_stack


def tapped(
    model: fx.GraphModule,
    names: Collection[str],
    enter: Callable[[str, Tensor], Tensor],
    leave: Callable[[str, Tensor], None],
) -> fx.GraphModule:
    """A view of the model, of the same parameters, buffers and modules, in which `enter(name, tensor)` stands for each tensor
    that reaches the operators of a module of the original, and `leave(name, tensor)` sees the last one that they hand on.

    Raises TaskError for a name of which no operators are left in the graph.
    """
    graph = copy.deepcopy(model.graph)
    flowing = set(flowing_nodes(graph))
    for name in names:
        own = [node for node in graph.nodes if node in flowing and name in module_stack(node)]
        leaving = [node for node in own if any(user not in own for user in node.users)]
        if not leaving:
            raise TaskError(
                "blocks of the teacher must be left in the student's graph", got=f"nothing of {name}", remedy="protect it"
            )
        with graph.inserting_after(leaving[-1]):
            graph.call_function(_seeing(name, leave), (leaving[-1],))
        for node in own:
            for source in [n for n in node.all_input_nodes if n in flowing and n not in own]:
                with graph.inserting_before(node):
                    tap = graph.call_function(_standing_for(name, enter), (source,))
                flowing.add(tap)
                node.replace_input_with(source, tap)
    return fx.GraphModule(model, graph)


def flowing_nodes(graph: fx.Graph) -> dict[fx.Node, None]:
    """What depends on an input, in order: weights, and their rounding, don't."""
    found = dict[fx.Node, None]()
    for node in graph.nodes:
        if node.op == "placeholder" or not found.keys().isdisjoint(node.all_input_nodes):
            found[node] = None
    return {node: None for node in found if node.op != "output"}


def _seeing(name: str, leave: Callable[[str, Tensor], None]) -> Callable[[Any], None]:
    def seeing(value: Any) -> None:
        if isinstance(value, Tensor):
            leave(name, value)

    return seeing


def _standing_for(name: str, enter: Callable[[str, Tensor], Tensor]) -> Callable[[Any], Any]:
    def standing_for(value: Any) -> Any:
        return enter(name, value) if isinstance(value, Tensor) else value  # a size is none

    return standing_for
