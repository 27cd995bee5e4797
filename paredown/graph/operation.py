"""What a rule sees of one node of the graph: arguments by name, labels of their dimensions, and what it may do to them."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from paredown.core.report import Barrier
from paredown.graph.labels import Array, Dims, Labels
from paredown.graph.trace import place_of

Product = tuple[float, tuple[Array, ...]]  # MACs of one sample: the factor times the living indices of each dimension


@dataclass(frozen=True, eq=False)
class Fold:
    """A class divides by the square root of a width that shrinks; rows of weights (tensor, dimension, rows) make up for it.

    width: labels of the dimension. targets: what is to be multiplied by sqrt(new width / old width).
    """

    width: Array
    targets: tuple[tuple[str, int, Array], ...]


@dataclass
class Knowledge:
    """What is known of a graph so far; the rules add to it.

    modules: of the model, by name. dims: node -> labels of each of its outputs (one, or several for split and chunk).
    origins: placeholder of a parameter or buffer -> its first name in the model.
    consumers: (parameter, dimension) whose indices weigh an input; zeroing them masks that input.
    products: MACs, one entry per convolution or matrix product.
    calls: node -> which call of its operator it is. statistics: (call, dimension from the end, labels) of normalizations.
    contracted: labels of dimensions along which two activations are multiplied and summed.
    folds: attention scales that a class computes from a width. attributes: whole numbers that a class keeps of a dimension.
    counts: (module, attribute) -> every dimension whose size it seems to be, where it is a number of heads.
    pieces: labels of the equal parts into which a class splits a dimension; it can only do so if they stay equal.
    """

    samples: int
    modules: dict[str, nn.Module] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    dims: dict[fx.Node, tuple[Dims, ...]] = field(default_factory=dict)
    origins: dict[fx.Node, str] = field(default_factory=dict)
    consumers: set[tuple[str, int]] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)
    barriers: dict[Barrier, None] = field(default_factory=dict)
    calls: dict[fx.Node, tuple[str, int]] = field(default_factory=dict)
    statistics: list[tuple[tuple[str, int], int, Array]] = field(default_factory=list)
    contracted: list[Array] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    attributes: list[tuple[str, str, Array]] = field(default_factory=list)
    counts: dict[tuple[str, str], list[Array]] = field(default_factory=dict)
    pieces: list[list[Array]] = field(default_factory=list)


class Operation:
    """One call of an ATen operator."""

    def __init__(self, node: fx.Node, known: Knowledge) -> None:
        self.node, self.known, self.labels = node, known, known.labels
        names, defaults = _signature(node.target)
        self._arguments = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}

    def __getitem__(self, name: str) -> Any:
        return self._arguments[name]

    def get(self, *names: str) -> Any:
        """The first of these arguments that the operator has and that isn't None."""
        return next((value for name in names if (value := self._arguments.get(name)) is not None), None)

    def dims(self, node: Any, output: int = 0) -> Dims:
        """Labels of the dimensions of a tensor."""
        return self.known.dims[node][output]

    def operands(self) -> list[fx.Node]:
        """Every tensor among the arguments, lists included."""
        return [node for node in self.node.all_input_nodes if self.known.dims.get(node)]

    def axis(self, node: Any, dimension: Any) -> int:
        """A dimension counted from the front."""
        rank = len(shape(node))
        return int(dimension) % rank if rank else 0

    def unite(self, a: Array | None, b: Array | None, why: str = "it meets a dimension that is fixed") -> None:
        """Both dimensions live or die together; what meets a fixed one is frozen."""
        if a is None or b is None or len(a) != len(b):
            self.freeze([a, b], why)
        elif not self.labels.unite(a, b):
            self.barrier("two dimensions meet that are split into factors differently")

    def freeze(self, dims: Iterable[Array | None], why: str) -> None:
        """These indices stay; a barrier is recorded where that is news."""
        arrays = [labels for labels in dims if labels is not None]
        if arrays and self.labels.freeze(np.concatenate(arrays)):
            self.barrier(why)

    def fix(self, *dims: Array | None) -> None:
        """Freezes what nobody could prune (a kernel's height): no barrier is recorded."""
        for labels in dims:
            if labels is not None:
                self.labels.freeze(labels)

    def barrier(self, why: str) -> None:
        self.known.barriers[Barrier(operator_name(self.node), place_of(self.node), why)] = None

    def consume(self, weight: Any, dimension: int, labels: Array | None) -> None:
        """`dimension` of a weight is summed over against an input's dimension that carries `labels`."""
        mine = self.dims(weight)[dimension]
        if labels is None:  # the model's own input, or an input's width: nothing to prune, nothing to tell
            self.fix(mine)
            return
        origin = self.origin(weight, dimension)
        if origin is None and not is_standardized(weight):
            self.freeze([mine, labels], "its weight is computed in forward, so that a cut couldn't be checked by masking it")
            return
        self.unite(labels, mine)
        if origin is not None:
            self.known.consumers.add(origin)

    def take_statistics(self, axis: int, labels: Array | None) -> None:
        """This call takes statistics over the dimension `axis`, counted from the end; of the kept indices, once it is cut."""
        if labels is not None:
            self.known.statistics.append((self.known.calls[self.node], axis, labels))

    def origin(self, node: fx.Node, dimension: int) -> tuple[str, int] | None:
        """The parameter, and its dimension, that a node's dimension is a mere view of."""
        while node not in self.known.origins:
            step = Operation(node, self.known)
            order = permutation(step)
            if order is None:
                return None
            node, dimension = step.operands()[0], order[dimension]
        return self.known.origins[node], dimension


@functools.lru_cache(maxsize=1024)
def _signature(target: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of an operator's arguments, and the defaults of those that have one."""
    schema = getattr(target, "_schema", None)
    arguments = schema.arguments if schema is not None else []
    return tuple(a.name for a in arguments), {a.name: a.default_value for a in arguments if a.has_default_value()}


def is_standardized(node: fx.Node) -> bool:
    """Whether a weight is standardized by a batch norm in training mode, where the masked original masks what is cut of it."""
    if short_name(node) in {"view", "reshape", "reshape_as", "view_as"} and isinstance(node.args[0], fx.Node):
        return is_standardized(node.args[0])
    return short_name(node) == "batch_norm" and node.args[5] is True


def permutation(op: Operation) -> list[int] | None:
    """Output dimension -> input dimension, for operators that only reorder dimensions; None for others."""
    name, operands = short_name(op.node), op.operands()
    if len(operands) != 1:
        return None
    rank = len(shape(operands[0]))
    order = list(range(rank))
    match name:
        case "detach" | "alias" | "contiguous" | "clone" | "to":
            pass
        case "permute":
            order = [d % rank for d in op["dims"]]
        case "t" | "numpy_T" | "matrix_H" | "mT":
            order = order[::-1] if name in {"t", "numpy_T"} else [*order[:-2], *order[:-3:-1]]
        case "transpose" | "swapaxes":
            a, b = (op.get("dim0", "axis0") or 0) % rank, (op.get("dim1", "axis1") or 0) % rank
            order[a], order[b] = order[b], order[a]
        case "movedim":
            order = _moved(op, rank)
        case _:
            return None
    return order


def _moved(op: Operation, rank: int) -> list[int]:
    """movedim as an order: sizes that are all different tell where each dimension went."""
    sizes = torch.empty([i + 1 for i in range(rank)], device="meta").movedim(op["source"], op["destination"]).shape
    return [size - 1 for size in sizes]


def shape(node: Any, output: int = 0) -> tuple[Any, ...]:
    """Sizes of a tensor: integers, symbolic where dynamic; () for what isn't a tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    value = value[output] if isinstance(value, tuple | list) else value
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def hints(node: Any) -> tuple[int, ...]:
    """Sizes of a tensor as they were when it was traced."""
    return tuple(size if isinstance(size, int) else int(size.node.hint) for size in shape(node))


def static(size: Any) -> int | None:
    """A size, or None where it is dynamic."""
    return size if type(size) is int else None


def operator_name(node: fx.Node) -> str:
    """ "aten.conv2d", without the overload."""
    return _name(node.target)


def short_name(node: fx.Node) -> str:
    """ "relu" for aten.relu_ and aten.relu alike: what is done in place has the same rule. Others keep their namespace."""
    name = _name(node.target).removeprefix("aten.")
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


@functools.lru_cache(maxsize=1024)
def _name(target: Any) -> str:
    return str(getattr(target, "overloadpacket", None) or getattr(target, "__name__", target)).replace("::", ".")


def nothing(node: Any) -> tuple[Dims, ...]:
    """Outputs whose dimensions are all fixed."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return tuple((None,) * v.dim() for v in values if isinstance(v, torch.Tensor))
