"""Whole numbers that modules keep of dimensions: num_heads, head_dim, hidden_dim.

An attribute is taken for a dimension's size where the module reshapes a tensor to that size, and its name says so; a tuple or
list where the module splits a tensor into just these sizes, or views it in just this shape (its entries are called `name.0`,
`name.1`). That is a guess: the cut that it belongs to is tried, and refused where the class doesn't equal the masked original.
"""

import re
from collections.abc import Iterator

from torch import fx
from torch.nn.modules.conv import _ConvNd

from paredown.graph.labels import Array
from paredown.graph.operation import Knowledge, Operation, short_name
from paredown.graph.trace import module_stack

_RESHAPES = {"view", "reshape", "unflatten", "flatten", "_unsafe_view", "expand", "split", "split_with_sizes", "slice"}
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_WIDTH = re.compile(r"dim|size|width|channel|feature|embed|hidden|inner|planes|model|^(d|c|dh|nf|d_k|d_v|d_head)$|_chs?$|_c$")
_COUNT = re.compile(r"heads?$|^nh?$|^h$|num_attention|groups$|^(num|n)_(q|kv|k|v)")
_OTHER = re.compile(
    r"window|patch|kernel|img|image|stride|grid|vocab|pos|seq|max_|idx|index|layer|depth|class|pad|token|block|chunk|partition|^size$"
)


def find_attributes(known: Knowledge) -> list[tuple[str, str, Array]]:
    """(module, attribute, labels of the dimension whose size it is), for the nodes of a graph that were followed."""
    result: dict[tuple[str, str], Array] = {}
    for node in known.dims:
        if node.op == "call_function":
            for key, labels in _found(node, known):
                result.setdefault(key, labels)
                if _is_count(key[1]):
                    known.counts.setdefault(key, []).append(labels)
    return [(path, name, labels) for (path, name), labels in result.items()]


def _found(node: fx.Node, known: Knowledge) -> Iterator[tuple[tuple[str, str], Array]]:
    """What one node tells of the attributes of the modules that made it."""
    operator = short_name(node)
    if operator in _CONVOLUTIONS:
        yield from _filter_counts(node, known)
    if operator not in _RESHAPES:
        return
    sizes = list(_sizes(node, known))
    for path in module_stack(node) if sizes else ():
        yield from _sequences(node, known, path)
        for name in _numbers(known, path):
            labels = _choose(name, getattr(known.modules[path], name), sizes, known)
            if labels is not None:
                yield (path, name), labels


def _sizes(node: fx.Node, known: Knowledge) -> Iterator[tuple[Array, bool]]:
    """Labels of the dimensions that a reshape makes, and whether a dimension with labels follows: a number of heads."""
    source = Operation(node, known).operands()[:1]
    reshaped = [*known.dims[node], *(known.dims[x][0] for x in source)]
    for dims in reshaped:
        present = [labels for labels in dims if labels is not None]
        yield from ((labels, i + 1 < len(present)) for i, labels in enumerate(present))


def _sequences(node: fx.Node, known: Knowledge, path: str) -> Iterator[tuple[tuple[str, str], Array]]:
    """Entries of a tuple or list that holds the sizes into which a tensor is split, or the shape that it gets."""
    op = Operation(node, known)
    sizes, dims = op.get("split_sizes", "size", "shape"), known.dims[node]
    if not isinstance(sizes, tuple | list) or path not in known.modules:
        return
    axis = op.axis(op["self"], op.get("dim") or 0)
    labels = [piece[axis] for piece in dims] if short_name(node) == "split_with_sizes" else list(dims[0])
    for name, value in vars(known.modules[path]).items():
        if isinstance(value, tuple | list) and list(value) == list(sizes):
            fitting = ((i, array) for i, array in enumerate(labels) if array is not None and len(array) == value[i])
            yield from (((path, f"{name}.{i}"), array) for i, array in fitting)


def _filter_counts(node: fx.Node, known: Knowledge) -> Iterator[tuple[tuple[str, str], Array]]:
    """Channels that a module filters one by one with a filter of its own, as blur pooling does; torch's layers know theirs."""
    op, path = Operation(node, known), next(iter(module_stack(node)), "")
    labels = op.dims(op["input"])[1] if len(op.dims(op["input"])) > 1 else None
    if labels is None or isinstance(known.modules.get(path), _ConvNd) or op.get("groups") != len(labels):
        return
    for name in _numbers(known, path):
        if getattr(known.modules[path], name) == len(labels):
            yield (path, name), labels


def _numbers(known: Knowledge, path: str) -> list[str]:
    module = known.modules.get(path)
    names = [name for name, value in vars(module).items() if type(value) is int and value > 1] if module is not None else []
    return [name for name in names if not _OTHER.search(name) and (_WIDTH.search(name) or _COUNT.search(name))]


def _is_count(name: str) -> bool:
    return bool(_COUNT.search(name)) and not _WIDTH.search(name)


def _choose(name: str, value: int, sizes: list[tuple[Array, bool]], known: Knowledge) -> Array | None:
    """Of the dimensions of this size the one that the name speaks of; rather one that may lose an index."""
    fitting = [labels for labels, outer in sizes if len(labels) == value and outer == _is_count(name)]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return next((labels for labels in fitting if known.labels.canonical(labels).any()), fitting[0] if fitting else None)
