"""Rules of products: of activations with weights, and of activations with each other, attention among them.

Where two activations are multiplied and summed over a dimension, both lose the same indices of it.
"""

import numpy as np
from torch import fx

from paredown.graph.labels import Array, Dims
from paredown.graph.operation import Operation, hints, shape, static
from paredown.graph.rules_layers import aligned, count, frozen, is_weight, joined
from paredown.graph.rules_statistics import STATISTICS
from paredown.graph.scale import keep_scale


def matrix_product(op: Operation) -> tuple[Dims, ...]:
    """a (*, n, k), b (*, k, m) -> (*, n, m)."""
    a, b = (x for x in op.node.args[:2] if isinstance(x, fx.Node))
    if len(shape(a)) < 2 or len(shape(b)) < 2:
        return frozen("a product with a vector is not supported yet")(op)
    *_, rows, left = op.dims(a)
    *_, right, columns = op.dims(b)
    if is_weight(op, b):
        op.consume(b, len(shape(b)) - 2, left)
    elif is_weight(op, a):
        op.consume(a, len(shape(a)) - 1, right)
    else:
        _contract(op, (a, left), (b, right))
    sizes = shape(op.node)
    others = [joined(op, [aligned(op, x, axis, sizes) for x in (a, b)]) for axis in range(len(sizes) - 2)]
    dims = (*others, rows, columns)
    count(op, [*dims, left], [*hints(op.node), hints(a)[-1]])
    return (dims,)


def biased_product(op: Operation) -> tuple[Dims, ...]:
    """addmm, baddbmm: bias + a @ b, a (*, n, k), b (*, k, m), bias broadcast to (*, n, m)."""
    bias, a, b = op["self"], op.get("mat1", "batch1"), op.get("mat2", "batch2")
    *others, rows, left = op.dims(a)
    *more, right, columns = op.dims(b)
    if is_weight(op, b):
        op.consume(b, len(shape(b)) - 2, left)
    else:
        _contract(op, (a, left), (b, right))
    sizes = shape(op.node)
    batch = [joined(op, [x, y]) for x, y in zip(others, more, strict=True)]
    count(op, [*batch, rows, columns, left], [*hints(op.node), hints(a)[-1]])
    dims = (*batch, rows, columns)
    return (tuple(joined(op, [labels, aligned(op, bias, axis, sizes)]) for axis, labels in enumerate(dims)),)


def einsum(op: Operation) -> tuple[Dims, ...]:
    """Two operands, one letter a dimension: "bhid,bhjd->bhij"."""
    equation, tensors = str(op["equation"]).replace(" ", ""), list(op["tensors"])
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or "." in equation or not arrow or any(len(set(t)) < len(t) for t in (*terms, output)):
        return frozen("an einsum of this form is not supported yet")(op)
    found: dict[str, Array | None] = {}
    sizes = {letter: size for term, x in zip(terms, tensors, strict=True) for letter, size in zip(term, hints(x), strict=True)}
    for letter in sizes:
        places = [(x, t.index(letter)) for t, x in zip(terms, tensors, strict=True) if letter in t]
        parts = [op.dims(x)[axis] for x, axis in places]
        if letter in output:
            found[letter] = joined(op, list(parts))
        elif len(parts) == 1:
            op.freeze(parts, STATISTICS)
        else:
            _contract_letter(op, places)
            found[letter] = joined(op, list(parts))
    count(op, [found.get(letter) for letter in sizes], list(sizes.values()))
    return (tuple(found[letter] for letter in output),)


def attention(op: Operation) -> tuple[Dims, ...]:
    """scaled_dot_product_attention: query (*, h, l, d), key (*, g, s, d), value (*, g, s, e) -> (*, h, l, e); g divides h."""
    query, key, value = op["query"], op["key"], op["value"]
    *batch, positions, left = op.dims(query)
    op.freeze([op.dims(key)[-2], op.dims(value)[-2]], STATISTICS)
    _contract(op, (query, left), (key, op.dims(key)[-1]), op.get("scale"), scaled=True)
    sizes = shape(op.node)
    heads = [_heads(op, x, axis, sizes) for x in (key, value) for axis in range(len(batch))]
    dims = [joined(op, [labels, *heads[axis :: len(batch)]]) for axis, labels in enumerate(batch)]
    mask = op.get("attn_mask")
    if isinstance(mask, fx.Node):
        dims = [joined(op, [labels, aligned(op, mask, axis, sizes)]) for axis, labels in enumerate(dims)]
    outer = [*hints(query)[:-1], hints(key)[-2]]
    count(op, [*dims, positions, None, left], [*outer, hints(query)[-1]])
    count(op, [*dims, positions, None, op.dims(value)[-1]], [*outer, hints(value)[-1]])
    return ((*dims, positions, op.dims(value)[-1]),)


def repeat_interleave(op: Operation) -> tuple[Dims, ...]:
    """repeat_interleave: each index of `dim` several times in a row."""
    x, times = op["self"], op.get("repeats")
    if not isinstance(times, int) or op.get("dim") is None:
        return frozen("indices are repeated by a number that is computed")(op)
    axis, dims = op.axis(x, op["dim"]), op.dims(x)
    labels = dims[axis]
    return ((*dims[:axis], None if labels is None else np.repeat(labels, times), *dims[axis + 1 :]),)


def gather(op: Operation) -> tuple[Dims, ...]:
    """index, index_select by tensors of positions: the dimensions that they pick from are frozen, the others pass."""
    x, dims = op["self"], op.dims(op["self"])
    picks = list(op["indices"]) if op.get("indices") is not None else [None] * op.axis(x, op["dim"]) + [op["index"]]
    picked = [axis for axis, pick in enumerate(picks) if pick is not None]
    for pick in picks:
        op.fix(*(op.dims(pick) if isinstance(pick, fx.Node) else ()))
    op.freeze([dims[axis] for axis in picked], "indices of it are picked by number")
    rest = [labels for axis, labels in enumerate(dims) if axis not in picked]
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    at, new = picked[0] if adjacent else 0, len(shape(op.node)) - len(rest)
    return ((*rest[:at], *[None] * new, *rest[at:]),)


def _contract(
    op: Operation,
    a: tuple[fx.Node, Array | None],
    b: tuple[fx.Node, Array | None],
    scale: float | None = None,
    *,
    scaled: bool = False,
) -> None:
    """Two activations, each with the labels of the dimension over which they are multiplied and summed."""
    op.unite(a[1], b[1], "two activations are multiplied and summed over it")
    if a[1] is None or b[1] is None or len(a[1]) != len(b[1]):
        return
    op.known.contracted.append(a[1])
    keep_scale(op, (a[0], b[0]), a[1], scale, scaled=scaled)


def _contract_letter(op: Operation, places: list[tuple[fx.Node, int]]) -> None:
    (a, i), (b, j) = places
    if is_weight(op, b):
        op.consume(b, j, op.dims(a)[i])
    elif is_weight(op, a):
        op.consume(a, i, op.dims(b)[j])
    else:
        _contract(op, (a, op.dims(a)[i]), (b, op.dims(b)[j]))


def _heads(op: Operation, x: fx.Node, axis: int, sizes: tuple[object, ...]) -> Array | bool | None:
    """Labels of a batch dimension of a key or value, repeated where each of its heads serves several of the query."""
    labels = aligned(op, x, axis, sizes)
    here, there = hints(x)[axis - len(sizes) + len(shape(x))], static(sizes[axis])
    if isinstance(labels, bool) or labels is None or there is None or here == there:
        return labels
    return np.repeat(labels, there // here)
