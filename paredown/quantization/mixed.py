"""Mixed precision: bits per layer under limits, chosen exactly, then verified and repaired by the real metric.

    minimize  sum_l S[l, c(l)]   subject to   sum_l C_k[l, c(l)] <= limit_k for each cost k

a multiple-choice knapsack, solved to optimality as an integer program (HiGHS by scipy.optimize.milp). The model is additive,
and the truth isn't: `repair` measures the choice and its neighbours, and moves to what is better beyond doubt.
Costs are tables (layers, choices): bytes, bit operations (BOPs = MACs * weight bits * activation bits), or a latency that was
measured in the runtime and arrives as data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.optimize
import torch
from scipy.sparse import csr_array

from paredown.core.errors import BudgetError
from paredown.measure.latency_table import LatencyTable
from paredown.quantization.layers import layers_of, unquantized, values_at
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import FLOAT, BitWidths, Scheme
from paredown.task.batches import Inputs, batch_size

Table = npt.NDArray[np.float64]
Assignment = tuple[int, ...]  # for each layer the index of its choice

Result = TypeVar("Result")

STORAGE = {2: 2.0, 3: 3.2, 4: 4.0}  # bits that one weight takes in a file (ten of 3 bits in an int32)


@dataclass(frozen=True)
class Facts:
    """One layer: its module path, its weights, its output channels, the MACs of one sample."""

    path: str
    parameters: int
    rows: int
    macs: int


@dataclass(frozen=True)
class Verified(Generic[Result]):
    """What `repair` found: the choice, what was measured of it and of the first, and how many choices were measured."""

    assignment: Assignment
    result: Result
    first: Result
    evaluations: int


def facts_of(model: QuantizedModel, inputs: Inputs) -> tuple[Facts, ...]:
    """The layers in the order of all tables."""
    layers = layers_of(model)
    with torch.no_grad(), unquantized(model):
        outputs = values_at(model, [layer.node for layer in layers], inputs)
    found = []
    for layer, y in zip(layers, outputs, strict=True):
        weight = layer.weight(model)
        macs = y.numel() // batch_size(inputs) * weight[0].numel()
        found.append(Facts(layer.path, weight.numel(), weight.shape[0], macs))
    return tuple(found)


def stored_bits(bits: int) -> float:
    """What a weight of so many bits takes in a file."""
    return STORAGE.get(bits, next(float(width) for width in (8, 16, 32) if bits <= width))


def size_table(facts: Sequence[Facts], choices: Sequence[BitWidths]) -> Table:
    """Bytes of the weights as stored, with their scales: 4 bytes for each output channel or group."""
    return np.array([[_bytes(f, c) for c in choices] for f in facts], dtype=np.float64)


def bits_table(facts: Sequence[Facts], choices: Sequence[BitWidths]) -> Table:
    """Bits of the weights by themselves: limited to 4 times all weights, they average 4 bits."""
    return np.array([[float(f.parameters * c.weight_bits) for c in choices] for f in facts])


def bops_table(facts: Sequence[Facts], choices: Sequence[BitWidths]) -> Table:
    """Bit operations of one sample."""
    return np.array([[f.macs * c.weight_bits * c.activation_bits for c in choices] for f in facts], dtype=np.float64)


def latency_table(facts: Sequence[Facts], choices: Sequence[BitWidths], measured: LatencyTable) -> Table:
    """ms, of which each layer bears an equal part of the int8 model's, and what that takes more with the layer in float.

    measured: of the model in int8, and by layer path, at 32 bits, with that layer alone in float: conversions around it included.
    """
    base, share = measured.base_ms, measured.base_ms / max(len(facts), 1)
    return np.array([[share + (measured.at(f.path, FLOAT) - base if c.is_float else 0.0) for c in choices] for f in facts])


def choose(sensitivity: Table, costs: Mapping[str, Table], limits: Mapping[str, float]) -> Assignment:
    """The assignment with the smallest summed sensitivity within all limits. Each name in limits is one of costs.

    Raises BudgetError where no assignment keeps them, naming the limit that is out of reach by itself if there is one.
    """
    layers, choices = sensitivity.shape
    _check(costs, limits)
    scale = max(float(np.abs(sensitivity).max()), 1e-300)
    one_each = csr_array((np.ones(layers * choices), (np.repeat(np.arange(layers), choices), np.arange(layers * choices))))
    constraints = [scipy.optimize.LinearConstraint(one_each, 1, 1)]
    constraints += [scipy.optimize.LinearConstraint(costs[k].reshape(1, -1) / limits[k], -np.inf, 1) for k in limits]
    result = scipy.optimize.milp(
        sensitivity.flatten() / scale,
        constraints=constraints,
        integrality=np.ones(layers * choices),
        bounds=scipy.optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise BudgetError("some assignment must keep all limits together", got=dict(limits), remedy="raise one of them")
    return tuple(int(c) for c in result.x.reshape(layers, choices).argmax(1))


def rule_of_thumb(
    facts: Sequence[Facts], costs: Mapping[str, Table], limits: Mapping[str, float], *, low: int, high: int
) -> Assignment:
    """The baseline: layers with the most MACs get the high choice, one after the other while the limits hold, the rest low.

    Raises BudgetError where low everywhere is too much.
    """
    _check(costs, limits)
    assignment = [low] * len(facts)
    if not within_limits(tuple(assignment), costs, limits):
        raise BudgetError("the low choice everywhere must keep the limits", got=dict(limits), remedy="take a lower one")
    for index in sorted(range(len(facts)), key=lambda i: -facts[i].macs):
        raised = [*assignment[:index], high, *assignment[index + 1 :]]
        if within_limits(tuple(raised), costs, limits):
            assignment = raised
    return tuple(assignment)


def repair(
    first: Assignment,
    sensitivity: Table,
    costs: Mapping[str, Table],
    limits: Mapping[str, float],
    measure: Callable[[Assignment], Result],
    better: Callable[[Result, Result], bool],
    *,
    evaluations: int = 20,
) -> Verified[Result]:
    """Local search by the real metric. better: (of a neighbour, of the current one) -> whether to move there.

    Neighbours: one layer gets another choice, or two layers do; those within the limits are measured in the order of their
    predicted sum, best first, and the first that is better is moved to. It ends when none is, or when the evaluations are spent.
    """
    measured = {first: measure(first)}
    current = first
    while len(measured) < evaluations:
        found = None
        for candidate in _neighbours(current, sensitivity, costs, limits):
            if candidate in measured:
                continue
            measured[candidate] = measure(candidate)
            if better(measured[candidate], measured[current]):
                found = candidate
            if found is not None or len(measured) >= evaluations:
                break
        if found is None:
            break
        current = found
    return Verified(current, measured[current], measured[first], len(measured))


def within_limits(assignment: Assignment, costs: Mapping[str, Table], limits: Mapping[str, float]) -> bool:
    return all(cost_of(assignment, costs[k]) <= limits[k] * (1 + 1e-9) for k in limits)


def cost_of(assignment: Assignment, table: Table) -> float:
    return float(table[np.arange(len(assignment)), list(assignment)].sum())


def scheme_of(
    facts: Sequence[Facts], choices: Sequence[BitWidths], assignment: Assignment, default: BitWidths | None = None
) -> Scheme:
    """The assignment as a scheme. default: of what isn't among the layers (None: 8 bits)."""
    named = {f.path: choices[c] for f, c in zip(facts, assignment, strict=True)}
    return Scheme(default or BitWidths(), named)


def average_bits(facts: Sequence[Facts], choices: Sequence[BitWidths], assignment: Assignment) -> float:
    """Weight bits averaged over all weights."""
    total = sum(f.parameters for f in facts)
    return sum(f.parameters * choices[c].weight_bits for f, c in zip(facts, assignment, strict=True)) / total


def _neighbours(
    current: Assignment, sensitivity: Table, costs: Mapping[str, Table], limits: Mapping[str, float]
) -> list[Assignment]:
    layers, choices = sensitivity.shape
    singles = [(i, c) for i in range(layers) for c in range(choices) if c != current[i]]
    moves = [(m,) for m in singles] + [(a, b) for a in singles for b in singles if a[0] < b[0]]
    ranked = []
    for move in moves:
        changed = list(current)
        for index, chosen in move:
            changed[index] = chosen
        if within_limits(tuple(changed), costs, limits):
            ranked.append((cost_of(tuple(changed), sensitivity), tuple(changed)))
    return [assignment for _, assignment in sorted(ranked)]


def _bytes(f: Facts, c: BitWidths) -> float:
    if c.weight_bits == FLOAT:
        return 4.0 * f.parameters
    bits = stored_bits(c.weight_bits)
    scales = f.rows if not c.group else f.rows * -(-f.parameters // f.rows // c.group)
    return f.parameters * bits / 8 + 4.0 * scales


def _check(costs: Mapping[str, Table], limits: Mapping[str, float]) -> None:
    unknown = [name for name in limits if name not in costs]
    if unknown:
        raise BudgetError("a limit must name one of the costs", got=unknown[0], remedy=f"the costs are {', '.join(costs)}")
    for name, limit in limits.items():
        least = float(costs[name].min(1).sum())
        if not limit > 0 or least > limit:
            raise BudgetError(
                f"the limit of {name} must be reachable", got=limit, remedy=f"the least that any choice gives is {least:g}"
            )
