"""Blocks of a model: modules that everything passes through, with one tensor in and one out, as its graph shows.

A tensor *cuts* the graph where nothing else that was computed before it from inputs and weights is read after it: a residual
stream between two blocks does, a tensor inside a residual branch doesn't. A module whose operators lie between two such tensors
(or between the inputs and one) can learn by itself what another module in its place gives. Of modules that hold one another the
innermost are taken that have nearly all weights of the outer one: a residual block, not its convolutions, which are no such
modules, nor the stage around it. Where these would be single layers, a module around at most four of them is taken whole.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from paredown.core.errors import TaskError
from paredown.graph.manifest import Manifest
from paredown.graph.operation import Knowledge
from paredown.graph.propagate import propagate
from paredown.graph.trace import Dynamic, module_stack, trace
from paredown.task.batches import Inputs, batch_size

Kept = dict[int, tuple[int, ...]]  # dimension -> of its indices those that a cut leaves; without those that stay whole

_SHARE = 0.9  # of a module's weights that the blocks inside it must have, to be taken instead of it
_LAYERS = 4  # with a matrix, of which a block may consist that could be taken apart


@dataclass(frozen=True)
class Block:
    """A module, and what a cut leaves of the tensor that enters it and of the one that leaves it."""

    name: str
    entering: Kept
    leaving: Kept


def blocks_of(
    model: nn.Module, inputs: Inputs, manifest: Manifest | None = None, *, dynamic: Dynamic | None = None
) -> tuple[Block, ...]:
    """In the order in which they run. The model is not touched.

    inputs: at least 2 samples. manifest: of a cut of this model. Raises TraceError where torch.export can't follow the model,
    TaskError where nothing of it is a block.
    """
    program = trace(model, inputs, dynamic)
    spans = _spans(program)
    names = list(_chosen(model, "", spans))
    if not names:
        raise TaskError(
            "a model must have parts that everything passes through", got="none", remedy="leave reconstruct out, or write True"
        )
    known = propagate(program, model, batch_size(inputs))
    alive = _alive(known, manifest or Manifest())
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    found = ((order[spans[name].leaving], name, spans[name]) for name in names)
    return tuple(
        Block(name, _kept(span.entering, known, alive), _kept(span.leaving, known, alive))
        for _, name, span in sorted(found, key=lambda each: each[0])
    )


@dataclass(frozen=True, eq=False)
class _Span:
    """The tensor that enters a module, None where that is an input of the model, and the one that leaves it."""

    entering: fx.Node | None
    leaving: fx.Node


def _spans(program: ExportedProgram) -> dict[str, _Span]:
    """Modules between tensors that cut the graph."""
    main = _computed(program)
    cuts = set(_cuts(program, main))
    inside: dict[str, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node in main:
            for path in set(module_stack(node)) - {""}:
                inside.setdefault(path, []).append(node)
    spans = {}
    for path, nodes in inside.items():
        own = set(nodes)
        entering = {n for node in nodes for n in node.all_input_nodes if n in main and n not in own}
        leaving = [node for node in nodes if any(user not in own and _reads(user) for user in node.users)]
        if len(entering) <= 1 and entering <= cuts and len(leaving) == 1 and leaving[0] in cuts:
            spans[path] = _Span(next(iter(entering), None), leaving[0])
    return spans


def _computed(program: ExportedProgram) -> set[fx.Node]:
    """Tensors that depend on an input and on a weight: no mask, and no table of relative positions."""
    given, known = set(program.graph_signature.user_inputs), {*program.graph_signature.parameters}
    weights = {name for name, target in program.graph_signature.inputs_to_parameters.items() if target in known}
    from_input, from_weight = set[fx.Node](), set[fx.Node]()
    for node in program.graph.nodes:
        if not _reads(node) or node.op == "output":
            continue
        if node.name in given or not from_input.isdisjoint(node.all_input_nodes):
            from_input.add(node)
        if node.name in weights or not from_weight.isdisjoint(node.all_input_nodes):
            from_weight.add(node)
    return from_input & from_weight


def _reads(node: fx.Node) -> bool:
    """Whether a node stands for tensors: what only takes a size of one doesn't count."""
    value = node.meta.get("val")
    return node.op == "output" or isinstance(value, Tensor | tuple | list)


def _cuts(program: ExportedProgram, main: Collection[fx.Node]) -> Iterator[fx.Node]:
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    latest = -1  # use of what came before
    for node, here in order.items():
        if node in main:
            if latest <= here:
                yield node
            latest = max(latest, *(order[user] for user in node.users if _reads(user)), here)


def _chosen(model: nn.Module, path: str, spans: Mapping[str, _Span]) -> list[str]:
    module = model.get_submodule(path)
    if not any(True for _ in module.parameters()):
        return []
    parts = [name for child, _ in module.named_children() for name in _chosen(model, f"{path}.{child}" if path else child, spans)]
    if path not in spans:
        return parts
    covered = sum(_size(model.get_submodule(name)) for name in parts)
    single = all(_layers(model.get_submodule(name)) <= 1 for name in parts)
    return [path] if covered < _SHARE * _size(module) or (single and _layers(module) <= _LAYERS) else parts


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _layers(module: nn.Module) -> int:
    """How many modules hold a matrix or a kernel."""
    return sum(any(p.dim() > 1 for p in part.parameters(recurse=False)) for part in module.modules())


def _alive(known: Knowledge, manifest: Manifest) -> dict[int, bool]:
    """Label -> whether the indices that carry it stay."""
    alive: dict[int, bool] = {}
    for node, name in known.origins.items():
        for dimension, kept in manifest.kept.get(name, {}).items():
            labels = known.dims[node][0][dimension]
            if labels is not None:
                stays = np.isin(np.arange(len(labels)), kept)
                alive.update(zip(known.labels.canonical(labels).tolist(), stays.tolist(), strict=True))
    return alive


def _kept(node: fx.Node | None, known: Knowledge, alive: Mapping[int, bool]) -> Kept:
    if node is None:
        return {}
    result = {}
    for dimension, labels in enumerate(known.dims[node][0]):
        if labels is not None:
            stays = [alive.get(label, True) for label in known.labels.canonical(labels).tolist()]
            if not all(stays):
                result[dimension] = tuple(i for i, stay in enumerate(stays) if stay)
    return result


def shared(names: Collection[str], model: nn.Module) -> set[str]:
    """Of these modules those of which a parameter stands in another of them too."""
    owners = Counter(id(p) for name in names for p in model.get_submodule(name).parameters())
    return {name for name in names if any(owners[id(p)] > 1 for p in model.get_submodule(name).parameters())}
