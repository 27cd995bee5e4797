"""Labels from the inputs of a traced graph to its outputs, operator by operator."""

from typing import Any

import numpy as np
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from paredown.core.report import Barrier
from paredown.graph.operation import Knowledge, Operation, nothing
from paredown.graph.rules import follow

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)
_OUTPUT = "the model's output keeps its shape"


def propagate(program: ExportedProgram, model: nn.Module, samples: int) -> Knowledge:
    """What the operators of `program`, traced from `model` with a batch of `samples`, tie together."""
    known = Knowledge(samples)
    _enter(program, model, known)
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
        if spec.kind not in _WEIGHTS or spec.target not in tensors or not node.users:
            known.dims[node] = nothing(node)
            continue
        name = first_names[id(tensors[spec.target])]
        known.origins[node] = name
        twin = first.setdefault(name, node)
        known.dims[node] = known.dims.get(twin) or (tuple(known.labels.fresh(size) for size in tensors[name].shape),)


def _named_tensors(model: nn.Module) -> Any:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _leave(node: fx.Node, known: Knowledge) -> None:
    """Whatever the model returns, or writes into its buffers, keeps its shape."""
    for source in node.all_input_nodes:
        arrays = [labels for dims in known.dims.get(source, ()) for labels in dims if labels is not None]
        if arrays and known.labels.freeze(np.concatenate(arrays)):
            known.barriers[Barrier("output", "", _OUTPUT)] = None
