"""Rules of the operators that take statistics: normalizations, softmax, reductions.

A normalization over a dimension that loses indices takes its statistics over those that are kept (`statistics.py`): that is what
the class does by itself when the dimension is smaller. Any other statistic freezes what it runs over.
"""

from collections.abc import Callable

from torch import fx

from paredown.graph.labels import Array, Dims
from paredown.graph.operation import Operation, hints, nothing, shape, short_name

STATISTICS = "it takes statistics over this dimension"
_ROOTS = {"rsqrt", "sqrt"}
_PASSING = {"add", "clamp", "clamp_min", "maximum", "to"}


def per_channel(op: Operation) -> tuple[Dims, ...]:
    """batch_norm, instance_norm, prelu: input (batch, channels, *), parameters and statistics (channels,)."""
    x, *parameters = op.operands()
    if len(shape(x)) < 2:
        op.freeze([d for y in op.operands() for d in op.dims(y)], "its channels are not on dimension 1")
        return nothing(op.node)
    if short_name(op.node) == "instance_norm":
        op.freeze(op.dims(x)[2:], STATISTICS)
    if short_name(op.node) == "batch_norm" and op["training"]:
        _standardize(op, x)
    for parameter in parameters:
        if hints(parameter)[0] == hints(x)[1]:
            _go_with(op, parameter, op.dims(x)[1:2])
        else:
            op.fix(*op.dims(parameter))
    return (op.dims(x),)


def _standardize(op: Operation, x: fx.Node) -> None:
    """Weight standardization: batch_norm in training mode over a weight (1, out, in * kernel). Elsewhere it freezes."""
    one, _, *rest = op.dims(x)
    if hints(x)[0] == 1 and len(rest) == 1 and op.get("running_mean") is None:
        op.take_statistics(-1, rest[0])
    else:
        op.freeze([one, *rest], STATISTICS)


def normalization(op: Operation) -> tuple[Dims, ...]:
    """layer_norm, rms_norm over the last dimensions: input (*, n, m), weight and bias (n, m)."""
    x, count = op["input"], len(op["normalized_shape"])
    normalized = op.dims(x)[-count:]
    for parameter in (op.get("weight"), op.get("bias")):
        _go_with(op, parameter, normalized)
    for axis, labels in enumerate(normalized, start=-count):
        op.take_statistics(axis, labels)
    return (op.dims(x),)


def group_normalization(op: Operation) -> tuple[Dims, ...]:
    """input (batch, groups * channels, *), weight and bias (groups * channels,): every group loses the same of its channels."""
    x, groups = op["input"], int(op["num_groups"])
    channels = op.dims(x)[1]
    op.freeze(op.dims(x)[2:], STATISTICS)
    for parameter in (op.get("weight"), op.get("bias")):
        _go_with(op, parameter, (channels,))
    if channels is not None:
        op.labels.split(channels, [groups, len(channels) // groups])
        op.take_statistics(1 - len(shape(x)), channels)
    return (op.dims(x),)


def along(op: Operation) -> tuple[Dims, ...]:
    """softmax, cumsum, flip, roll: the shape stays, and what happens along `dim` needs every index of it."""
    x = op.operands()[0]
    given = op.get("dim", "dims")
    dimensions = [given] if isinstance(given, int) else list(given or range(len(shape(x))))
    op.freeze([op.dims(x)[op.axis(x, d)] for d in dimensions], STATISTICS)
    return (op.dims(x),)


def reduction(op: Operation) -> tuple[Dims, ...]:
    """mean, sum, amax, ...: what is reduced over is frozen, the rest passes. The mean of a handwritten normalization is one."""
    x = op.operands()[0]
    given = op.get("dim")
    rank = len(shape(x))
    reduced = {op.axis(x, d) for d in ([given] if isinstance(given, int) else given or range(rank))}
    name = short_name(op.node)
    if name == "mean" and given is not None and _normalizes(op.node):
        for d in reduced:
            op.take_statistics(d - rank, op.dims(x)[d])
    elif name == "linalg_vector_norm" and op["ord"] == 2:
        op.known.contracted.extend(labels for d in reduced if (labels := op.dims(x)[d]) is not None)  # zeros add nothing to it
    else:
        op.freeze([op.dims(x)[d] for d in reduced], STATISTICS)
    kept = tuple(None if d in reduced else op.dims(x)[d] for d in range(rank) if op.get("keepdim") or d not in reduced)
    return (kept,) * len(nothing(op.node))


def _go_with(op: Operation, parameter: fx.Node | None, dims: tuple[Array | None, ...]) -> None:
    """A parameter's dimensions go with these; fixed ones fix it."""
    if parameter is None:
        return
    for mine, labels in zip(op.dims(parameter), dims, strict=True):
        if labels is None:
            op.fix(mine)
        else:
            op.unite(labels, mine)


def _normalizes(mean: fx.Node) -> bool:
    """Whether a mean is subtracted from what it was taken of, or divides it, or its root does: x / sqrt(mean(x * x) + eps)."""
    source = mean.args[0]
    if any(short_name(user) == "sub" and source in user.args for user in mean.users):
        return True
    squared = isinstance(source, fx.Node) and _squares(source)
    return _leads_to(mean, lambda user: (short_name(user) == "div" and user.args[0] is source) or (squared and _is_root(user)))


def _squares(node: fx.Node) -> bool:
    match short_name(node), node.args:
        case ("pow", (_, 2 | 2.0)) | ("square", _):
            return True
        case "mul", (a, b):
            return a is b
    return False


def _is_root(node: fx.Node) -> bool:
    return short_name(node) in _ROOTS or (short_name(node) == "pow" and node.args[1] in (0.5, -0.5))


def _leads_to(node: fx.Node, found: Callable[[fx.Node], bool], steps: int = 4) -> bool:
    """Whether at most so many elementwise steps lead from a node to one like that."""
    users = list(node.users)
    further = [user for user in users if short_name(user) in _PASSING] if steps else []
    return any(found(user) for user in users) or any(_leads_to(user, found, steps - 1) for user in further)
