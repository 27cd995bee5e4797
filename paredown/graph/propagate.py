"""Labels from the inputs of a traced graph to its outputs, operator by operator."""

from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from paredown.core.report import Barrier
from paredown.graph.labels import Dims
from paredown.graph.operation import Knowledge, Operation, nothing, short_name
from paredown.graph.rules import follow
from paredown.graph.trace import place_of

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)
_OUTPUT = "the model's output keeps its shape"


def propagate(program: ExportedProgram, model: nn.Module, samples: int) -> Knowledge:
    """What the operators of `program`, traced from `model` with a batch of `samples`, tie together."""
    known = Knowledge(samples, dict(model.named_modules()))
    _enter(program, model, known)
    _count_calls(program, known)
    for node in program.graph.nodes:
        if node.op == "call_function":
            known.dims[node] = follow(Operation(node, known))
        elif node.op == "output":
            _leave(node, known)
        elif node not in known.dims:
            known.dims[node] = nothing(node)
    return known


def names_of(model: nn.Module) -> dict[int, str]:
    """id of each parameter and buffer -> its first name: tied weights are one tensor under several names."""
    result: dict[int, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        result.setdefault(id(tensor), name)
    return result


def _enter(program: ExportedProgram, model: nn.Module, known: Knowledge) -> None:
    """Each dimension of each parameter and buffer gets labels, once per tensor; inputs and constants are fixed."""
    first_names, tensors = names_of(model), dict(_named_tensors(model))
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    first: dict[str, fx.Node] = {}
    for spec in program.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind not in _WEIGHTS or spec.target not in tensors or not node.users or _is_index(tensors[spec.target]):
            known.dims[node] = nothing(node)
            continue
        name = first_names[id(tensors[spec.target])]
        known.origins[node] = name
        twin = first.setdefault(name, node)
        known.dims[node] = known.dims.get(twin) or (_fresh(tensors[name], known),)


def _fresh(tensor: Tensor, known: Knowledge) -> Dims:
    """A dimension of size 1 can lose nothing, and is broadcast."""
    return tuple(known.labels.fresh(size) if size > 1 else None for size in tensor.shape)


def _is_index(tensor: Tensor) -> bool:
    """Whole numbers count positions or tokens: nothing in them is a channel."""
    return not tensor.is_floating_point() and not tensor.is_complex()


def _count_calls(program: ExportedProgram, known: Knowledge) -> None:
    numbers = Counter[str]()
    for node in program.graph.nodes:
        if node.op == "call_function":
            name = short_name(node)
            known.calls[node] = name, numbers[name]
            numbers[name] += 1


def _named_tensors(model: nn.Module) -> Any:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _leave(node: fx.Node, known: Knowledge) -> None:
    """Whatever the model returns, or writes into its buffers, keeps its shape."""
    for source in node.all_input_nodes:
        arrays = [labels for dims in known.dims.get(source, ()) for labels in dims if labels is not None]
        if arrays and known.labels.freeze(np.concatenate(arrays)):
            known.barriers[Barrier("output", place_of(source), _OUTPUT)] = None
