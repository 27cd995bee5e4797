"""Rules of the operators that hold weights, and of those that work element by element.

A rule returns the labels of every output's dimensions, and unites or freezes what its operator ties.
"""

import math

from torch import fx

from paredown.graph.labels import Array, Dims
from paredown.graph.operation import Operation, hints, nothing, shape, short_name
from paredown.graph.rules_statistics import STATISTICS


def elementwise(op: Operation) -> tuple[Dims, ...]:
    """Any number of tensors, broadcast against each other: what meets is united; a dimension of size 1 carries nothing."""
    sizes = shape(op.node)
    return (tuple(joined(op, [aligned(op, x, axis, sizes) for x in op.operands()]) for axis in range(len(sizes))),)


def convolution(op: Operation) -> tuple[Dims, ...]:
    """input ([batch,] in, *spatial), weight (out, in / groups, *kernel) -> ([batch,] out, *spatial)."""
    x, weight, groups = op["input"], op["weight"], int(op["groups"])
    out, _, *kernel = op.dims(weight)
    op.fix(*kernel)
    batch, channels = _before_channels(op, x, len(kernel))
    if groups == 1:
        op.consume(weight, 1, channels)
    else:
        _grouped(op, channels, weight, groups)
    _along_weights(op, out, op.get("bias"))
    _count_convolution(op, op.node, weight)
    return ((*batch, out, *[None] * len(kernel)),)


def transposed_convolution(op: Operation) -> tuple[Dims, ...]:
    """input ([batch,] in, *spatial), weight (in, out / groups, *kernel) -> ([batch,] out, *spatial); out is (group, column)."""
    x, weight, groups = op["input"], op["weight"], int(op["groups"])
    rows, columns, *kernel = op.dims(weight)
    op.fix(*kernel)
    batch, channels = _before_channels(op, x, len(kernel))
    _count_convolution(op, x, weight)
    op.consume(weight, 0, channels)
    rows = op.dims(weight)[0]
    group = op.labels.split(rows, [groups, hints(weight)[0] // groups])[0] if groups > 1 and rows is not None else None
    out = op.labels.merge([(group, groups), (columns, hints(weight)[1])]) if groups > 1 else columns
    _along_weights(op, out, op.get("bias"))
    return ((*batch, out, *[None] * len(kernel)),)


def linear(op: Operation) -> tuple[Dims, ...]:
    """input (*, in), weight (out, in) -> (*, out)."""
    x, weight = op["input"], op["weight"]
    *others, channels = op.dims(x)
    op.consume(weight, 1, channels)
    out = op.dims(weight)[0]
    _along_weights(op, out, op.get("bias"))
    count(op, [*others, *op.dims(weight)], [*hints(x)[:-1], *hints(weight)])
    return ((*others, out),)


def embedding(op: Operation) -> tuple[Dims, ...]:
    """weight (entries, width), indices (*) -> (*, width)."""
    entries, width = op.dims(op["weight"])
    op.fix(entries)
    return ((*op.dims(op["indices"]), width),)


def over_space(op: Operation) -> tuple[Dims, ...]:
    """Poolings and interpolations, named after how many last dimensions they work on: max_pool2d, upsample_nearest2d."""
    x = op.operands()[0]
    count = next(int(c) for c in reversed(short_name(op.node)) if c in "123")
    op.freeze(op.dims(x)[-count:], STATISTICS)
    return ((*op.dims(x)[:-count], *[None] * count),) * len(nothing(op.node))


class frozen:  # noqa: N801 (used as a rule, as the functions above are)
    """The rule of an operator that nothing is known of: what it touches stays as it is."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __call__(self, op: Operation) -> tuple[Dims, ...]:
        op.freeze([d for x in op.operands() for dims in op.known.dims[x] for d in dims], self.why)
        return nothing(op.node)


def _grouped(op: Operation, channels: Array | None, weight: fx.Node, groups: int) -> None:
    """Input channel (group, c) and output channel (group, o) live with their group; c is the weight's dimension 1."""
    outs, ins = hints(weight)[:2]
    out = op.dims(weight)[0]
    group_of_out = None if out is None else op.labels.split(out, [groups, outs // groups])[0]
    group_of_in, inner = (None, None) if channels is None else op.labels.split(channels, [groups, ins])
    op.unite(group_of_in, group_of_out)
    op.consume(weight, 1, inner)


def _before_channels(op: Operation, x: fx.Node, spatial: int) -> tuple[Dims, Array | None]:
    """Labels of the batch (none for an unbatched input) and of the channels. A convolution needs every row and column."""
    axis = len(shape(x)) - spatial - 1
    op.freeze(op.dims(x)[axis + 1 :], "a convolution slides along it")
    return op.dims(x)[:axis], op.dims(x)[axis]


def _along_weights(op: Operation, out: Array | None, parameter: fx.Node | None) -> None:
    """A parameter (channels,) goes with the channels `out`; fixed channels fix it."""
    if parameter is None:
        return
    if out is None:
        op.fix(*op.dims(parameter))
    else:
        op.unite(out, op.dims(parameter)[0])


def is_weight(op: Operation, node: fx.Node) -> bool:
    """Whether a tensor is a parameter or a reordering of one's dimensions."""
    return op.origin(node, 0) is not None


def _count_convolution(op: Operation, positions: fx.Node, weight: fx.Node) -> None:
    """Each element of the weight works once per position, of the output or, where transposed, of the input."""
    places, kernel = math.prod(hints(positions)) // hints(weight)[0], math.prod(hints(weight)[2:])
    count(op, [None, *op.dims(weight)[:2]], [places * kernel, *hints(weight)[:2]])


def count(op: Operation, dims: list[Array | None], sizes: list[int]) -> None:
    """MACs of this operator: the product of the sizes of `dims`, of which those that carry labels may shrink."""
    fixed = math.prod(size for labels, size in zip(dims, sizes, strict=True) if labels is None)
    op.known.products.append((fixed / op.known.samples, tuple(labels for labels in dims if labels is not None)))


def aligned(op: Operation, x: fx.Node, axis: int, sizes: tuple[object, ...]) -> Array | bool | None:
    """Labels of x along `axis` of the broadcast result; False where x is broadcast along it."""
    dimension = axis - len(sizes) + len(shape(x))
    if dimension < 0:
        return False
    if hints(x)[dimension] == 1 and not (type(sizes[axis]) is int and sizes[axis] == 1):
        op.fix(op.dims(x)[dimension])
        return False
    return op.dims(x)[dimension]


def joined(op: Operation, parts: list[Array | bool | None]) -> Array | None:
    """All of them united; None where one of them is fixed, or where there is none."""
    present = [part for part in parts if not isinstance(part, bool)]
    for part in present[1:]:
        op.unite(present[0], part)
    return present[0] if present and all(part is not None for part in present) else None
