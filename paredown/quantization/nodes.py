"""Reading and rewriting the nodes of an exported ATen graph whose parameters are attributes of a GraphModule."""

import operator
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

_QUANTIZERS, _DROPOUTS = "quantizers.", "dropouts."  # what stands before the key in the target of a call


def name_of(node: Any) -> str:
    """The ATen operator of a node without its overload ("conv2d", "add"); "" for anything else."""
    target = node.target if isinstance(node, fx.Node) and node.op == "call_function" else None
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return target._schema.name.removeprefix("aten::")
    return ""


def value_of(node: Any) -> Tensor | None:
    """The example tensor that tracing left at a node (a fake one: shape and type only), None where there is none."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def is_float(node: Any) -> bool:
    value = value_of(node)
    return value is not None and value.is_floating_point()


def argument(node: fx.Node, index: int, default: Any = None) -> Any:
    """The index-th argument, wherever it was written, by the operator's schema."""
    if index < len(node.args):
        return node.args[index]
    name = node.target._schema.arguments[index].name  # type: ignore[union-attr]  # an ATen operator
    return node.kwargs.get(name, default)


def constant(module: nn.Module, node: Any) -> Tensor | None:
    """The parameter or buffer that a node reads, None where it is computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = get(module, str(node.target))
    return value if isinstance(value, Tensor) else None


def get(module: nn.Module, path: str) -> Any:
    """The attribute at a dotted path."""
    return reduce(getattr, path.split("."), module)


def put_(module: nn.Module, path: str, value: Tensor) -> None:
    """Sets a parameter at a dotted path whose last module exists."""
    prefix, _, name = path.rpartition(".")
    owner = module.get_submodule(prefix) if prefix else module
    setattr(owner, name, value)


def free_path(module: nn.Module, path: str) -> str:
    """`path`, or the first of path_1, path_2, ... that no attribute of the module has."""
    candidate, number = path, 0
    while _exists(module, candidate):
        number += 1
        candidate = f"{path}_{number}"
    return candidate


def _exists(module: nn.Module, path: str) -> bool:
    try:
        operator.attrgetter(path)(module)
    except AttributeError:
        return False
    return True


def quantizer_key(node: fx.Node) -> str:
    """Of the quantizer that a node calls; "" where it calls none."""
    target = str(node.target)
    return target.removeprefix(_QUANTIZERS) if target.startswith(_QUANTIZERS) else ""


def is_dropout(node: fx.Node) -> bool:
    """Whether a node calls one of the dropouts that `insert_dropouts_` made modules of."""
    return str(node.target).startswith(_DROPOUTS)
