"""Operators of an exported graph in a form that quantizers can stand between: in-place ones as functional ones, `relu_(x)` as
`relu(x)`; `silu(x)` as a product, x sigmoid(x); a gate that is expanded for a product as it is, since products broadcast.

Whatever read x after the operator reads its result. Where x shares its memory with another tensor (it is a view, has
views, or is an input) the operator stays as it is, and no quantizer is put at x. But for dropouts: traced in evaluation mode they
change nothing, and the modules that they become write elsewhere (`insert.py`).
"""

import operator

import torch
from torch import fx

from paredown.quantization.nodes import name_of, value_of

_VIEWS = frozenset(
    ["view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "slice", "select", "squeeze", "unsqueeze", "expand",
     "expand_as", "narrow", "chunk", "split", "split_with_sizes", "unbind", "view_as", "detach", "alias", "diagonal", "unfold",
     "movedim", "swapaxes", "contiguous", "to", "dropout", "feature_dropout", "dropout_", "feature_dropout_", "numpy_T", "mT"]
)  # fmt: skip
DROPOUTS = ("dropout", "feature_dropout")


def is_inplace(node: fx.Node) -> bool:
    """Whether the node changes its first argument."""
    name = name_of(node)
    return name.endswith("_") and not name.startswith("_")


def functionalize_(graph: fx.Graph) -> int:
    """Replaces the in-place operators that safely can be; returns how many."""
    count = 0
    for node in list(graph.nodes):
        if not is_inplace(node):
            continue
        counterpart = _counterpart(node)
        x = node.args[0]
        if counterpart is None or not isinstance(x, fx.Node) or (_aliased(x) and name_of(node).removesuffix("_") not in DROPOUTS):
            continue
        later = set(_after(node))
        node.target = counterpart
        x.replace_all_uses_with(node, delete_user_cb=lambda user, later=later: user in later)  # type: ignore[misc]
        count += 1
    return count


def split_silu_(graph: fx.Graph) -> None:
    """Each silu becomes a sigmoid and a product, so that a runtime which has no integer silu computes both in integers."""
    for node in [node for node in graph.nodes if name_of(node) == "silu"]:
        x = node.args[0]
        with graph.inserting_before(node):
            gate = graph.call_function(torch.ops.aten.sigmoid.default, (x,))
            product = graph.call_function(torch.ops.aten.mul.Tensor, (x, gate))
        gate.meta, product.meta = dict(node.meta), dict(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def drop_expansions_(graph: fx.Graph) -> None:
    """What is expanded to be multiplied with, or added to, a tensor of that shape goes in as it is."""
    for node in [node for node in graph.nodes if name_of(node) in ("expand", "expand_as")]:
        x, users = node.args[0], list(node.users)
        if value_of(x) is not None and users and all(_broadcasts(user, node) for user in users):
            node.replace_all_uses_with(x)
            graph.erase_node(node)


def _broadcasts(user: fx.Node, expanded: fx.Node) -> bool:
    """Whether the user's result has the shape of its other operand anyway."""
    if name_of(user) not in ("mul", "add") or list(user.args[:2]).count(expanded) != 1:
        return False
    other = next(each for each in user.args[:2] if each is not expanded)
    shapes = [value.shape for value in map(value_of, (other, expanded, user)) if value is not None]
    return len(shapes) == 3 and len({str(tuple(shape)) for shape in shapes}) == 1


def _counterpart(node: fx.Node) -> torch._ops.OpOverload | None:
    """aten.relu_.default -> aten.relu.default, None where there is no such operator."""
    packet = getattr(torch.ops.aten, name_of(node).removesuffix("_"), None)
    overload = node.target._overloadname  # type: ignore[union-attr]  # an ATen operator
    return getattr(packet, overload, None)


def _aliased(x: fx.Node) -> bool:
    """Whether another tensor may share x's memory."""
    if x.op != "call_function" or x.target is operator.getitem or name_of(x) in _VIEWS or value_of(x) is None:
        return True
    return any(name_of(user) in _VIEWS for user in x.users if not is_inplace(user) and _may_precede(user, x))


def _may_precede(user: fx.Node, x: fx.Node) -> bool:
    """Whether a view of x was taken before the first in-place operator on it."""
    return next((u for u in sorted(x.users) if is_inplace(u)), user) > user


def _after(node: fx.Node) -> list[fx.Node]:
    rest, current = [], node.next
    while current.op != "root":
        rest.append(current)
        current = current.next
    return rest
