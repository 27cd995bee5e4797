"""The dimensions of parameters and buffers, and where in them a label stands first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from paredown.graph.labels import Array
from paredown.graph.operation import Knowledge

Dimension: TypeAlias = tuple[str, int]  # a parameter or buffer, and one of its dimensions


def dimensions_of(known: Knowledge) -> dict[Dimension, Array]:
    """Labels of every dimension of every parameter and buffer, in the order in which the graph uses them."""
    order = {node: i for i, node in enumerate(next(iter(known.dims)).graph.nodes)} if known.dims else {}
    by_use = sorted(known.origins, key=lambda node: min(order[user] for user in node.users))
    return {
        (known.origins[node], d): labels for node in by_use for d, labels in enumerate(known.dims[node][0]) if labels is not None
    }


@dataclass(frozen=True, eq=False)
class Places:
    """Where each label stands first in the model's parameters and buffers.

    labels: canonical, ascending. first: of each its place in all dimensions laid end to end, which begin at `starts`.
    """

    labels: Array
    first: Array
    dimensions: tuple[Dimension, ...]
    starts: Array

    @classmethod
    def of(cls, known: Knowledge) -> "Places":
        """As the labels stand now."""
        dimensions = dimensions_of(known)
        arrays = [np.zeros(0, dtype=np.int64), *dimensions.values()]
        labels, first = np.unique(known.labels.canonical(np.concatenate(arrays)), return_index=True)
        return cls(labels, first, tuple(dimensions), np.cumsum([0, *map(len, dimensions.values())]))

    def have(self, labels: Array) -> bool:
        """Whether each of these canonical labels that isn't fixed stands anywhere."""
        labels = labels[labels != 0]
        found = np.searchsorted(self.labels, labels)
        return bool((found < len(self.labels)).all() and (self.labels[found] == labels).all())

    def sources(self, labels: Array) -> Iterator[tuple[str, int, Array, Array]]:
        """(tensor, dimension, there, here): index here[k] of canonical labels (size,) that aren't fixed stands at there[k]."""
        here = np.flatnonzero(labels)
        found = np.searchsorted(self.labels, labels[here])
        assert (self.labels[found] == labels[here]).all()  # `have` was asked before
        first = self.first[found]
        which = np.searchsorted(self.starts, first, side="right") - 1
        for number in dict.fromkeys(which.tolist()):
            mine = which == number
            yield *self.dimensions[number], first[mine] - self.starts[number], here[mine]
