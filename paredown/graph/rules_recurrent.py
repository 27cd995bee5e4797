"""Rules of recurrent layers, which stay whole: one operator for all time steps, layers and directions.

    weight_ih (gates * hidden, in), weight_hh (gates * hidden, out), bias (gates * hidden,), weight_hr (projected, hidden)
`hidden` is cut alike out of every gate. out = hidden, or projected. The layer above reads the outputs of all directions.
"""

import math

import numpy as np
from torch import fx

from paredown.graph.labels import Array, Dims
from paredown.graph.operation import Operation, hints, short_name
from paredown.graph.rules_layers import count

_FACTORIES = {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full"}
_GIVEN = "the caller gives the layer's initial state"


def lstm(op: Operation) -> tuple[Dims, ...]:
    """input (batch, time, in) -> output (batch, time, out), states (layers * directions, batch, out) and (..., hidden)."""
    hidden, outputs, dims = _layers(op, 4)
    first, second = op["hx"]
    return dims, _state(op, outputs, first, 1), _state(op, hidden, second, 2)


def gru(op: Operation) -> tuple[Dims, ...]:
    """The same with one state."""
    _, outputs, dims = _layers(op, 3)
    return dims, _state(op, outputs, op["hx"], 1)


def elman(op: Operation) -> tuple[Dims, ...]:
    """nn.RNN: no gates, one state."""
    _, outputs, dims = _layers(op, 1)
    return dims, _state(op, outputs, op["hx"], 1)


def _layers(op: Operation, gates: int) -> tuple[list[Array], list[Array], Dims]:
    """Labels of the hidden units and of the outputs of every layer and direction; of the dimensions of the last output."""
    x, params, directions = op.get("input", "data"), list(op["params"]), 2 if op["bidirectional"] else 1
    *outer, features = op.dims(x)
    op.freeze(outer, "it is walked through step by step")
    each = len(params) // (int(op["num_layers"]) * directions)
    steps = math.prod(hints(x)[:-1])
    hidden, outputs = list[Array](), list[Array]()
    for start in range(0, len(params), each * directions):
        for first in range(start, start + each * directions, each):
            units, made = _direction(op, params[first : first + each], gates, features, steps)
            hidden.append(units)
            outputs.append(made)
        features = np.concatenate(outputs[-directions:])
    return hidden, outputs, (*[None] * len(outer), features)


def _direction(op: Operation, params: list[fx.Node], gates: int, features: Array | None, steps: int) -> tuple[Array, Array]:
    """One layer in one direction: labels of its hidden units, and of what it gives out."""
    from_input, from_output, *rest = params
    rows = _labels(op.dims(from_input)[0], hints(from_input)[0])
    projection = rest.pop() if len(rest) % 2 else None
    op.consume(from_input, 1, features)
    for parameter in (from_output, *rest):
        op.unite(rows, op.dims(parameter)[0])
    of_gates, units = op.labels.split(rows, [gates, len(rows) // gates])
    op.fix(of_gates)
    hidden = output = _labels(units, len(rows) // gates)
    if projection is not None:
        op.consume(projection, 1, hidden)
        output = _labels(op.dims(projection)[0], hints(projection)[0])
        count(op, [None, *op.dims(projection)], [steps, *hints(projection)])
    op.consume(from_output, 1, output)
    for weight in (from_input, from_output):
        count(op, [None, *op.dims(weight)], [steps, *hints(weight)])
    return hidden, output


def _state(op: Operation, units: list[Array], initial: fx.Node, output: int) -> Dims:
    """The final state (layers * directions, batch, units), stacked: where it is used, all layers lose the same units."""
    given = op.dims(initial)[-1]
    if given is not None:
        for labels in units:
            op.unite(given, labels)
    elif short_name(initial) not in _FACTORIES:
        op.freeze(units, _GIVEN)
    if any(user.args[1] == output and user.users for user in op.node.users):
        for labels in units[1:]:
            op.unite(units[0], labels)
    return (*[None] * (len(op.dims(initial)) - 1), units[0])


def _labels(labels: Array | None, size: int) -> Array:
    return np.zeros(size, dtype=np.int64) if labels is None else labels
