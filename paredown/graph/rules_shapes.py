"""Rules of the operators that move indices about: views, reorderings, parts and joints."""

from typing import Any

import numpy as np
from torch import fx

from paredown.graph.labels import Array, Dims
from paredown.graph.operation import Operation, hints, nothing, permutation, shape, short_name, static
from paredown.graph.reshape import blocks


def first_operand(op: Operation) -> tuple[Dims, ...]:
    """The first tensor's dimensions, whatever the others are: type_as."""
    return (op.dims(op.operands()[0]),)


def factory(op: Operation) -> tuple[Dims, ...]:
    """new_zeros, new_full: a new tensor takes only its type from its operand."""
    return nothing(op.node)


def reorder(op: Operation) -> tuple[Dims, ...]:
    """permute, transpose, t, movedim."""
    x, order = op.operands()[0], permutation(op)
    return nothing(op.node) if order is None else (tuple(op.dims(x)[d] for d in order),)


def reshape(op: Operation) -> tuple[Dims, ...]:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: block by block, merged and split again."""
    x = op.operands()[0]
    dims, before, after = op.dims(x), shape(x), shape(op.node)
    op.fix(*(labels for labels, size in zip(dims, before, strict=True) if static(size) == 1))
    was, becomes = hints(x), hints(op.node)
    result: list[Array | None] = [None] * len(after)
    for ins, outs in blocks(before, after):
        if all(dims[i] is None for i in ins):
            continue
        sizes = [becomes[i] for i in outs]
        merged = op.labels.merge([(dims[i], was[i]) for i in ins])  # a dynamic dimension counts as long as it was when traced
        if merged is None or len(merged) != np.prod(sizes):
            op.freeze([dims[i] for i in ins], "it is reshaped together with a dynamic dimension")
            continue
        for i, labels in zip(outs, op.labels.split(merged, sizes), strict=True):
            result[i] = labels
    return (tuple(result),)


def expand(op: Operation) -> tuple[Dims, ...]:
    """expand, expand_as: a dimension of size 1 that grows is copies of one index, each with a label of its own."""
    x = op.operands()[0]
    before, after, sizes = hints(x), hints(op.node), shape(op.node)
    new = len(after) - len(before)
    same = [before[i] == after[i + new] for i in range(len(before))]
    op.fix(*(labels for labels, kept in zip(op.dims(x), same, strict=True) if not kept))
    old = (labels if kept else _copies(op, sizes[i + new]) for i, (labels, kept) in enumerate(zip(op.dims(x), same, strict=True)))
    return ((*[None] * new, *old),)


def repeat(op: Operation) -> tuple[Dims, ...]:
    """repeat: each dimension tiled; one of size 1 is copied as `expand` does."""
    x, times, sizes = op["self"], list(op["repeats"]), shape(op.node)
    new = len(times) - len(shape(x))
    dims: list[Array | None] = []
    for i, labels in enumerate(op.dims(x)):
        count = static(times[i + new])
        if count is None or (count > 1 and hints(x)[i] == 1):
            op.freeze([labels], "it is repeated a dynamic number of times") if count is None else op.fix(labels)
            dims.append(_copies(op, sizes[i + new]))
        else:
            dims.append(None if labels is None else np.tile(labels, count))
    return ((*[None] * new, *dims),)


def concatenate(op: Operation) -> tuple[Dims, ...]:
    """cat: joined along `dim`, united along the others."""
    parts = list(op["tensors"])
    axis = op.axis(parts[0], op["dim"])
    joined = [_explicit(op.dims(x)[axis], shape(x)[axis]) for x in parts]
    present = [labels for labels in joined if labels is not None]
    if len(present) < len(joined):
        op.freeze(present, "it is joined with a dynamic dimension")
    result = list(_united(op, parts, skip=axis))
    result[axis] = np.concatenate(present) if len(present) == len(joined) else None
    return (tuple(result),)


def stack(op: Operation) -> tuple[Dims, ...]:
    """stack: a new dimension, of which every index stays."""
    parts = list(op["tensors"])
    dims = _united(op, parts)
    axis = int(op["dim"]) % (len(dims) + 1)
    return ((*dims[:axis], None, *dims[axis:]),)


def parts(op: Operation) -> tuple[Dims, ...]:
    """split, split_with_sizes, chunk: consecutive pieces along `dim`, as long as they were when traced."""
    x = op["self"]
    axis, dims = op.axis(x, op["dim"]), op.dims(x)
    lengths = [value.shape[axis] for value in op.node.meta["val"]]
    labels = dims[axis]
    if labels is None:
        return (dims,) * len(lengths)
    pieces = np.split(labels, np.cumsum(lengths)[:-1])
    if len(pieces) > 1 and len(set(lengths)) == 1 and short_name(op.node) != "split_with_sizes":
        op.known.pieces.append(pieces)
    return tuple((*dims[:axis], piece, *dims[axis + 1 :]) for piece in pieces)


def unbind(op: Operation) -> tuple[Dims, ...]:
    """unbind: one output per index of `dim`, so all of them stay."""
    x = op["self"]
    axis, dims = op.axis(x, op["dim"]), op.dims(x)
    op.freeze([dims[axis]], "each index of it becomes a tensor of its own")
    return ((*dims[:axis], *dims[axis + 1 :]),) * len(op.node.meta["val"])


def select(op: Operation) -> tuple[Dims, ...]:
    """select: one index, which stays; the rest of the dimension is not touched."""
    x = op["self"]
    axis, dims = op.axis(x, op["dim"]), op.dims(x)
    labels, index = dims[axis], op["index"]
    if labels is not None:
        op.freeze([labels[[index]] if isinstance(index, int) else labels], "one index of it is picked by number")
    return ((*dims[:axis], *dims[axis + 1 :]),)


def window(op: Operation) -> tuple[Dims, ...]:
    """slice: start, stop and step along `dim`."""
    x = op["self"]
    axis, dims = op.axis(x, op["dim"]), op.dims(x)
    labels = dims[axis]
    bounds = [op.get("start"), op.get("end"), op["step"]]
    if labels is not None and any(isinstance(b, fx.Node) for b in bounds):
        op.freeze([labels], "it is sliced at a dynamic index")
        labels = None
    piece = None if labels is None else labels[slice(*bounds)]
    return ((*dims[:axis], piece, *dims[axis + 1 :]),)


def pad(op: Operation) -> tuple[Dims, ...]:
    """pad, constant_pad_nd: zeros get labels of their own. `pad` holds (before, after) pairs from the last dimension on."""
    x = op["self"]
    dims, amounts = list(op.dims(x)), list(op["pad"])
    constant = (op.get("mode") or "constant") == "constant"
    for k, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        axis = len(dims) - 1 - k
        labels = dims[axis]
        if labels is None or (before, after) == (0, 0):
            continue
        if not constant or not (isinstance(before, int) and isinstance(after, int)):
            op.freeze([labels], "it is padded by its own values, or by a dynamic amount")
            dims[axis] = None
            continue
        inner = labels[max(0, -before) : len(labels) - max(0, -after)]
        dims[axis] = np.concatenate([op.labels.fresh(max(0, before)), inner, op.labels.fresh(max(0, after))])
    return (tuple(dims),)


def item(op: Operation) -> tuple[Dims, ...]:
    """getitem on what split, chunk and the like returned."""
    source, index = op.node.args
    outputs = op.known.dims.get(source, ()) if isinstance(source, fx.Node) else ()
    return (outputs[index],) if isinstance(index, int) and index < len(outputs) else nothing(op.node)


def _united(op: Operation, parts: list[fx.Node], skip: int | None = None) -> Dims:
    """Dimension by dimension, all parts united; None where any of them is fixed."""
    result: list[Array | None] = []
    for axis in range(len(shape(parts[0]))):
        column = [op.dims(x)[axis] for x in parts]
        if axis != skip:
            for labels in column[1:]:
                op.unite(column[0], labels)
        result.append(column[0] if all(labels is not None for labels in column) else None)
    return tuple(result)


def _copies(op: Operation, size: Any) -> Array | None:
    """Labels of a dimension that is made by copying; None where its size is dynamic."""
    length = static(size)
    return None if length is None else op.labels.fresh(length)


def _explicit(labels: Array | None, size: Any) -> Array | None:
    """A fixed dimension written out as labels 0; None where it is dynamic."""
    length = static(size)
    return labels if labels is not None else None if length is None else np.zeros(length, dtype=np.int64)
