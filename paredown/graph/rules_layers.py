"""Rules of the operators that hold weights, and of those that take statistics.

A rule returns the labels of every output's dimensions, and unites or freezes what its operator ties.
"""

import math

from torch import fx

from paredown.graph.labels import Array, Dims
from paredown.graph.operation import Operation, hints, nothing, shape, short_name

_STATISTICS = "it takes statistics over this dimension"


def elementwise(op: Operation) -> tuple[Dims, ...]:
    """Any number of tensors, broadcast against each other: what meets is united; a dimension of size 1 carries nothing."""
    sizes = shape(op.node)
    return (tuple(_joined(op, [_aligned(op, x, axis, sizes) for x in op.operands()]) for axis in range(len(sizes))),)


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
    """weight (in, out / groups, *kernel). With groups its channels are frozen."""
    x, weight = op["input"], op["weight"]
    _, out, *kernel = op.dims(weight)
    batch, channels = _before_channels(op, x, len(kernel))
    _count_convolution(op, x, weight)
    if int(op["groups"]) != 1:
        op.freeze([channels, *op.dims(weight)], "a transposed convolution with groups is not supported yet")
        _along_weights(op, out, op.get("bias"))
        return nothing(op.node)
    op.fix(*kernel)
    op.consume(weight, 0, channels)
    _along_weights(op, out, op.get("bias"))
    return ((*batch, out, *[None] * len(kernel)),)


def linear(op: Operation) -> tuple[Dims, ...]:
    """input (*, in), weight (out, in) -> (*, out)."""
    x, weight = op["input"], op["weight"]
    *others, channels = op.dims(x)
    op.consume(weight, 1, channels)
    out = op.dims(weight)[0]
    _along_weights(op, out, op.get("bias"))
    _count(op, [*others, *op.dims(weight)], [*hints(x)[:-1], *hints(weight)])
    return ((*others, out),)


def matrix_product(op: Operation) -> tuple[Dims, ...]:
    """a (*, n, k), b (*, k, m) -> (*, n, m). One of them must be a parameter, or k is frozen."""
    a, b = (x for x in op.node.args[:2] if isinstance(x, fx.Node))
    if len(shape(a)) < 2 or len(shape(b)) < 2:
        return frozen("a product with a vector is not supported yet")(op)
    *_, rows, left = op.dims(a)
    *_, right, columns = op.dims(b)
    if _is_weight(op, b):
        op.consume(b, len(shape(b)) - 2, left)
    elif _is_weight(op, a):
        op.consume(a, len(shape(a)) - 1, right)
    else:
        op.freeze([left, right], "two activations are multiplied and summed over it")
    sizes = shape(op.node)
    others = [_joined(op, [_aligned(op, x, axis, sizes) for x in (a, b)]) for axis in range(len(sizes) - 2)]
    dims = (*others, rows, columns)
    _count(op, [*dims, left], [*hints(op.node), hints(a)[-1]])
    return (dims,)


def biased_product(op: Operation) -> tuple[Dims, ...]:
    """addmm: bias + a @ b, bias (m,) or (n, m)."""
    bias, a, b = op["self"], op["mat1"], op["mat2"]
    rows, left = op.dims(a)
    right, columns = op.dims(b)
    if _is_weight(op, b):
        op.consume(b, 0, left)
    else:
        op.freeze([left, right], "two activations are multiplied and summed over it")
    _count(op, [rows, columns, left], [*hints(op.node), hints(a)[-1]])
    sizes = shape(op.node)
    return (tuple(_joined(op, [labels, _aligned(op, bias, axis, sizes)]) for axis, labels in enumerate((rows, columns))),)


def per_channel(op: Operation) -> tuple[Dims, ...]:
    """batch_norm, instance_norm, prelu: input (batch, channels, *), parameters and statistics (channels,)."""
    x, *parameters = op.operands()
    if len(shape(x)) < 2:
        return frozen("its channels are not on dimension 1")(op)
    for parameter in parameters:
        if hints(parameter)[0] == hints(x)[1]:
            _along_weights(op, op.dims(x)[1], parameter)
        else:
            op.fix(*op.dims(parameter))
    return (op.dims(x),)


def normalization(op: Operation) -> tuple[Dims, ...]:
    """layer_norm, rms_norm over the last dimensions."""
    x, *parameters = op.operands()
    count = len(op["normalized_shape"])
    for parameter in parameters:
        op.fix(*op.dims(parameter))
    op.freeze(op.dims(x)[-count:], _STATISTICS)
    return (op.dims(x),)


def group_normalization(op: Operation) -> tuple[Dims, ...]:
    x, *parameters = op.operands()
    for parameter in parameters:
        op.fix(*op.dims(parameter))
    op.freeze(op.dims(x)[1:2], _STATISTICS)
    return (op.dims(x),)


def embedding(op: Operation) -> tuple[Dims, ...]:
    """weight (entries, width), indices (*) -> (*, width)."""
    entries, width = op.dims(op["weight"])
    op.fix(entries)
    return ((*op.dims(op["indices"]), width),)


def along(op: Operation) -> tuple[Dims, ...]:
    """softmax, cumsum, flip, roll: the shape stays, and what happens along `dim` needs every index of it."""
    x = op.operands()[0]
    given = op.get("dim", "dims")
    dimensions = [given] if isinstance(given, int) else list(given or range(len(shape(x))))
    op.freeze([op.dims(x)[op.axis(x, d)] for d in dimensions], _STATISTICS)
    return (op.dims(x),)


def reduction(op: Operation) -> tuple[Dims, ...]:
    """mean, sum, amax, ...: what is reduced over is frozen, the rest passes."""
    x = op.operands()[0]
    given = op.get("dim")
    rank = len(shape(x))
    reduced = {op.axis(x, d) for d in ([given] if isinstance(given, int) else given or range(rank))}
    op.freeze([op.dims(x)[d] for d in reduced], _STATISTICS)
    kept = tuple(None if d in reduced else op.dims(x)[d] for d in range(rank) if op.get("keepdim") or d not in reduced)
    return (kept,) * len(nothing(op.node))


def over_space(op: Operation) -> tuple[Dims, ...]:
    """Poolings and interpolations, named after how many last dimensions they work on: max_pool2d, upsample_nearest2d."""
    x = op.operands()[0]
    count = next(int(c) for c in reversed(short_name(op.node)) if c in "123")
    op.freeze(op.dims(x)[-count:], _STATISTICS)
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


def _is_weight(op: Operation, node: fx.Node) -> bool:
    """Whether a tensor is a parameter or a reordering of one's dimensions."""
    return op.origin(node, 0) is not None


def _count_convolution(op: Operation, positions: fx.Node, weight: fx.Node) -> None:
    """Each element of the weight works once per position, of the output or, where transposed, of the input."""
    places, kernel = math.prod(hints(positions)) // hints(weight)[0], math.prod(hints(weight)[2:])
    _count(op, [None, *op.dims(weight)[:2]], [places * kernel, *hints(weight)[:2]])


def _count(op: Operation, dims: list[Array | None], sizes: list[int]) -> None:
    """MACs of this operator: the product of the sizes of `dims`, of which those that carry labels may shrink."""
    fixed = math.prod(size for labels, size in zip(dims, sizes, strict=True) if labels is None)
    op.known.products.append((fixed / op.known.samples, tuple(labels for labels in dims if labels is not None)))


def _aligned(op: Operation, x: fx.Node, axis: int, sizes: tuple[object, ...]) -> Array | bool | None:
    """Labels of x along `axis` of the broadcast result; False where x is broadcast along it."""
    dimension = axis - len(sizes) + len(shape(x))
    if dimension < 0:
        return False
    if hints(x)[dimension] == 1 and not (type(sizes[axis]) is int and sizes[axis] == 1):
        op.fix(op.dims(x)[dimension])
        return False
    return op.dims(x)[dimension]


def _joined(op: Operation, parts: list[Array | bool | None]) -> Array | None:
    """All of them united; None where one of them is fixed, or where there is none."""
    present = [part for part in parts if not isinstance(part, bool)]
    for part in present[1:]:
        op.unite(present[0], part)
    return present[0] if present and all(part is not None for part in present) else None
