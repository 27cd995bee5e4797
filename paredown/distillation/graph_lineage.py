"""Lineage of a student that is a graph, since it was quantized: what a quantizer gives, beside the block of the teacher's.

Norms are folded and a quantizer stands behind the activation, so that layers have no counterpart; blocks have: what the operators
of `layer1.0` hand on is what the teacher's `layer1.0` gives. Its channels are those that the manifest keeps of the last weight
before it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paredown.distillation.features import observed
from paredown.distillation.lineage import Pair, check_layers, check_widths, layers_of, lineage, relative_indices, stranger
from paredown.distillation.taps import flowing_nodes
from paredown.graph.manifest import Manifest, manifest_of
from paredown.graph.trace import module_stack
from paredown.task.batches import Inputs, call, evaluating, first_samples, tensors, unfused

_AXES = {"conv1d": 1, "conv2d": 1, "conv3d": 1, "linear": -1}  # of the channels that an operator gives
_KEEPING = frozenset((
    "add", "mul", "relu", "relu_", "hardtanh", "hardtanh_", "clamp", "silu", "silu_", "gelu", "hardswish", "hardswish_", "elu",
    "leaky_relu", "leaky_relu_", "prelu", "dropout", "batch_norm", "layer_norm", "group_norm", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "contiguous", "clone", "to",
))  # operators that give the channels of one of their inputs  # fmt: skip


def descent(teacher: nn.Module, student: nn.Module, inputs: Inputs) -> list[Pair]:
    """Pairs by lineage, whether the student is a class of the user's or a graph. Raises TaskError where there are none.

    inputs: a batch, which the teacher of a graph runs on once.
    """
    if not isinstance(student, fx.GraphModule):
        return lineage(teacher, student)
    if pairs := list(_pairs(teacher, student, _run(teacher, inputs))):
        return pairs
    raise stranger("no block in common")


@dataclass(frozen=True)
class _Ran:
    """What a pass through the teacher showed. leaves: modules without parts, as they finished. shapes: of all tensors that a
    module gave, by its name.
    """

    leaves: list[str]
    shapes: dict[str, list[torch.Size]]


def _run(teacher: nn.Module, inputs: Inputs) -> _Ran:
    found = _Ran([], {})
    leaves = {name for name, module in teacher.named_modules() if name and next(module.children(), None) is None}

    def note(name: str, output: Any) -> None:
        found.shapes[name] = [tensor.shape for tensor in tensors(output)]
        if name in leaves:
            found.leaves.append(name)

    names = [name for name, _ in teacher.named_modules() if name]
    with evaluating(teacher), torch.no_grad(), unfused(), observed(teacher, names, note):
        call(teacher, first_samples(inputs, 2))
    return found


def _pairs(teacher: nn.Module, student: fx.GraphModule, ran: _Ran) -> Iterator[Pair]:
    before, found = manifest_of(teacher) or Manifest(), getattr(student, "manifest", None)
    after = found if isinstance(found, Manifest) else Manifest()
    _check_layers(teacher, student, after, ran)
    flowing = {node: module_stack(node) for node in flowing_nodes(student.graph)}
    for name, module in teacher.named_modules():
        if not name or next(module.children(), None) is None:
            continue
        own = {node for node, stack in flowing.items() if name in stack}
        leaving = {_unquantized(node): node for node in flowing if node in own and not own.issuperset(node.users)}
        if len(leaving) != 1 or len(ran.shapes.get(name, ())) != 1:
            continue
        value = next(iter(leaving))
        quantizer = next((node for node in (leaving[value], *value.users) if _is_quantizer(node)), None)
        shape, theirs = getattr(value.meta.get("val"), "shape", ()), ran.shapes[name][0]
        fitting = (s for s in _sources(value, flowing) if len(shape) > 1 and shape[s[1]] == len(student.get_parameter(s[0])))
        weight, axis = next(fitting, ("", 0))
        if quantizer is None or not weight or 0 in after.scaled.get(weight, {}) or len(theirs) != len(shape):
            continue
        if theirs[axis] != len(teacher.get_parameter(weight)) or _takes_in_a_norm(value, weight, name, teacher, ran):
            continue
        kept = relative_indices(before.kept.get(weight, {}).get(0), after.kept.get(weight, {}).get(0), weight)
        check_widths(weight, student.get_parameter(weight), teacher.get_parameter(weight), kept, 0)
        yield Pair(str(quantizer.target), name, kept, axis)


def _check_layers(teacher: nn.Module, student: fx.GraphModule, manifest: Manifest, ran: _Ran) -> None:
    """Layers that don't run, as auxiliary heads, aren't looked for; one that shares its weight is there where the other is."""
    ours = {name for name, _ in student.named_parameters(remove_duplicate=False)}
    theirs = dict(teacher.named_parameters(remove_duplicate=False))
    held = {id(theirs[name]) for name in ours if name in theirs}
    layers = layers_of(teacher) & set(ran.leaves)
    check_layers(layers, {name for name in layers if id(theirs[f"{name}.weight"]) in held}, manifest)


def _takes_in_a_norm(value: fx.Node, weight: str, block: str, teacher: nn.Module, ran: _Ran) -> bool:
    """Whether what leaves a block is a layer's output into which a norm was folded that comes after the block in the teacher."""
    layer = weight.rpartition(".")[0]
    if _operator(value) not in _AXES or layer not in ran.leaves:
        return False
    last = len(ran.leaves) - 1 - ran.leaves[::-1].index(layer)
    following = ran.leaves[last + 1] if last + 1 < len(ran.leaves) else ""
    return bool(following) and isinstance(teacher.get_submodule(following), _BatchNorm) and not following.startswith(f"{block}.")


def _sources(node: fx.Node, flowing: Collection[fx.Node]) -> Iterator[tuple[str, int]]:
    """The weights whose rows may be the channels of what a node gives, and where these lie: of a sum any of its parts."""
    name = _operator(node)
    if name in _AXES:
        weight = _unquantized(node.args[1]) if isinstance(node.args[1], fx.Node) else None
        if weight is not None and weight.op == "get_attr":
            yield str(weight.target), _AXES[name]
    elif name in _KEEPING or _is_quantizer(node):
        for each in node.all_input_nodes:
            if each in flowing:
                yield from _sources(each, flowing)


def _operator(node: fx.Node) -> str:
    """ "conv2d" of aten.conv2d.default; "" of anything else."""
    return str(node.target).split(".")[1] if node.op == "call_function" and "." in str(node.target) else ""


def _unquantized(node: fx.Node) -> fx.Node:
    """What a quantizer reads; any other node itself."""
    while _is_quantizer(node):
        node = node.all_input_nodes[0]
    return node


def _is_quantizer(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith("quantizers.")
