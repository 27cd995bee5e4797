"""The scale of an attention: what the original had, whatever width is left.

A class that computes 1 / sqrt(width) from the width itself scales by more once the width has shrunk from d to d'. The rows that
make the query are multiplied by sqrt(d' / d), which undoes it. A class that keeps the scale as an attribute needs nothing.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from paredown.graph.labels import Array
from paredown.graph.operation import Fold, Operation, hints, short_name
from paredown.graph.trace import module_stack

_SAME = frozenset({"contiguous", "clone", "detach", "alias", "dropout", "to", "mul", "div"})
_MOVES = frozenset(
    {"permute", "transpose", "t", "numpy_T", "mT", "swapaxes", "movedim", "view", "reshape", "flatten", "unflatten", "squeeze"}
    | {"unsqueeze", "_unsafe_view", "expand", "select", "slice", "split", "split_with_sizes", "chunk", "unbind", "getitem"}
)
_UNFOLDABLE = "the class computes its attention scale from this width, and no weight can make up for it"


def keep_scale(op: Operation, operands: tuple[fx.Node, fx.Node], width: Array, scale: float | None, *, scaled: bool) -> None:
    """Records what makes up for a scale that is computed from `width`, the labels of the dimension that `operands` share.

    scale: as an argument of the operator; scaled: whether the operator scales by itself where there is none.
    """
    factors = [scale] if scale is not None else [] if scaled else list(_factors(op.node, operands))
    computed = (scaled and scale is None) or any(_is_root(f, len(width)) and not _is_kept(op, f) for f in factors)
    if not computed:
        return
    targets = next((rows for x in operands if (rows := _rows(op, x))), None)
    if targets is None:
        op.freeze([width], _UNFOLDABLE)
    else:
        op.known.folds.append(Fold(width, targets))


def _factors(product: fx.Node, operands: tuple[fx.Node, ...]) -> Iterator[float]:
    """Numbers that the operands, or the product itself, are multiplied by or divided by."""
    for operand in operands:
        node: Any = operand
        while isinstance(node, fx.Node) and short_name(node) in _MOVES | _SAME:
            yield from _number(node)
            node = node.args[0]
    for user in product.users:
        yield from _number(user)


def _number(node: fx.Node) -> Iterator[float]:
    if short_name(node) in {"mul", "div"} and isinstance(node.args[1], int | float):
        yield float(node.args[1])


def _is_root(factor: float, width: int) -> bool:
    """Whether a factor is width^(1/2) or width^(1/4), or one over that."""
    power = abs(math.log(factor) / math.log(width)) if factor > 0 and width > 1 else 0.0
    return math.isclose(power, 0.5, rel_tol=1e-6) or math.isclose(power, 0.25, rel_tol=1e-6)


def _is_kept(op: Operation, factor: float) -> bool:
    """Whether the module, or one around it, has this factor as an attribute."""
    modules = (op.known.modules.get(path) for path in module_stack(op.node))
    values = (v for module in modules if module is not None for v in vars(module).values() if type(v) is float)
    return any(math.isclose(v, factor, rel_tol=1e-6) or math.isclose(v * factor, 1, rel_tol=1e-6) for v in values)


def _rows(op: Operation, node: Any) -> tuple[tuple[str, int, Array], ...] | None:
    """The rows of the weight and bias that make a tensor; None where more than moving indices lies between."""
    moves: list[fx.Node] = []
    while isinstance(node, fx.Node) and _passes(node):
        moves.append(node)
        node = node.args[0]
    maker = _maker(op, node) if isinstance(node, fx.Node) else None
    if maker is None:
        return None
    axis, places = maker
    sizes = hints(node)
    ids = torch.arange(sizes[axis]).reshape([-1 if d == axis else 1 for d in range(len(sizes))]).expand(sizes).contiguous()
    rows = np.unique(_moved(ids, node, moves).numpy())
    return tuple((tensor, dimension, rows) for tensor, dimension in places)


def _passes(node: fx.Node) -> bool:
    name = short_name(node)
    if name in {"mul", "div"}:
        return isinstance(node.args[1], int | float)
    return name in _MOVES or name in _SAME


def _maker(op: Operation, node: fx.Node) -> tuple[int, list[tuple[str, int]]] | None:
    """The dimension of a layer's output that its weights make, and the dimensions of those weights."""
    step, rank = Operation(node, op.known), len(hints(node))
    match short_name(node):
        case "linear":
            axis, parts = rank - 1, [(step["weight"], 0), (step.get("bias"), 0)]
        case "addmm":
            axis, parts = rank - 1, [(step["mat2"], 1), (step["self"], 0)]
        case "conv1d" | "conv2d" | "batch_norm":
            axis, parts = 1, [(step.get("weight"), 0), (step.get("bias"), 0)]
        case "layer_norm" | "rms_norm" if len(step["normalized_shape"]) == 1:
            axis, parts = rank - 1, [(step.get("weight"), 0), (step.get("bias"), 0)]
        case _:
            return None
    if parts[0][0] is None:
        return None
    origins = [op.origin(weight, dimension) for weight, dimension in parts if weight is not None]
    places = [origin for origin in origins if origin is not None]
    return (axis, places) if len(places) == len(origins) else None


def _moved(ids: Tensor, source: fx.Node, moves: list[fx.Node]) -> Tensor:
    """The numbers of the indices after the moves, which are in reverse order."""
    value: Any = ids
    for node in reversed(moves):
        value = value.contiguous() if isinstance(value, Tensor) else value  # so that any view of it is possible
        if short_name(node) not in _SAME:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n, at=source, x=value: x if n is at else _size(n))  # type: ignore[misc]  # defaults bind the loop's names
            value = node.target(*args, **kwargs) if callable(node.target) else value
        source = node
    return torch.as_tensor(value)


def _size(node: fx.Node) -> int:
    value = node.meta["val"]
    return value if isinstance(value, int) else int(value.node.hint)
