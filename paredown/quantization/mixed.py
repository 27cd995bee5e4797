"""Mixed precision: bits per layer under limits, chosen exactly, then verified and repaired by the real metric.

    minimize    sum_l S[l, c(l)] + sum_t A[t, b(t)]
    subject to  sum_l C_k[l, c(l)] <= limit_k for each cost k, b(t) = the bits that c(l) reads, for each l that reads t,
                and c(l) = c(m) for layers l, m of one module

over the choice c of each layer (bits of its weights and of what it reads) and the bits b of each tensor: a multiple-choice
knapsack whose items share tensors, solved to optimality as an integer program (HiGHS by scipy.optimize.milp). The model is
additive, and the truth isn't: `repair` measures the choice and its neighbours, and moves to what is better beyond doubt.
Costs are tables (layers, choices) of `costs.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import scipy.optimize
from scipy.sparse import coo_array

from paredown.core.errors import BudgetError
from paredown.quantization.costs import Facts, Table
from paredown.quantization.scheme import BitWidths, Scheme

Assignment = tuple[int, ...]  # for each layer the index of its choice
_PAIRS = 500  # of moves of two layers at once, that are looked at

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sharing:
    """Which layers read the same tensor, and so read it in the same bits.

    choices: weights and what is read, as in the columns of all tables. reads (layers,): the tensor that each layer reads, as a
    number. levels: the bits that tensors can have, ascending. losses (tensors, levels): what is lost by each. A layer in float
    takes its tensor as others want it.
    """

    choices: tuple[BitWidths, ...]
    reads: tuple[int, ...]
    levels: tuple[int, ...]
    losses: Table

    def level(self, choice: int) -> int | None:
        """The index of the bits that a choice reads; None for a layer in float."""
        widths = self.choices[choice]
        return None if widths.is_float else self.levels.index(widths.activation_bits)

    def levels_of(self, assignment: Assignment) -> dict[int, set[int]]:
        """What is asked of each tensor that a layer in integers, or with weights alone on a grid, reads."""
        asked: dict[int, set[int]] = {}
        for tensor, choice in zip(self.reads, assignment, strict=True):
            level = self.level(choice)
            if level is not None:
                asked.setdefault(tensor, set()).add(level)
        return asked

    def lost(self, assignment: Assignment) -> float:
        """By what is read, all together."""
        asked = self.levels_of(assignment)
        return float(sum(self.losses[tensor, level] for tensor, levels in asked.items() for level in levels))

    def aligned(self, assignment: Assignment, layer: int) -> Assignment:
        """The assignment in which all layers that read what `layer` reads do so as it does, their weights as they are."""
        wanted = self.choices[assignment[layer]]
        if wanted.is_float:
            return assignment

        def followed(other: int, choice: int) -> int:
            own = self.choices[choice]
            if self.reads[other] != self.reads[layer] or own.is_float or own.activation_bits == wanted.activation_bits:
                return choice
            same = [c.weight_bits == own.weight_bits and c.activation_bits == wanted.activation_bits for c in self.choices]
            return same.index(True)

        return tuple(followed(other, choice) for other, choice in enumerate(assignment))


@dataclass(frozen=True)
class Problem:
    """sensitivity (layers, choices): of the weights. costs: tables of the same shape; limits: of some of them, by name.

    sharing: None where the bits of what is read aren't chosen. modules (layers,): of each layer the first one of its module; a
    scheme names modules, so that those of one module (both projections of an attention, the calls of a module that runs twice)
    have one choice. (): each has its own. Raises BudgetError for a limit that is unknown or out of reach.
    """

    sensitivity: Table
    costs: Mapping[str, Table]
    limits: Mapping[str, float]
    sharing: Sharing | None = None
    modules: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check(self.costs, self.limits)

    def predicted(self, assignment: Assignment) -> float:
        """The summed sensitivity."""
        own = cost_of(assignment, self.sensitivity)
        return own if self.sharing is None else own + self.sharing.lost(assignment)

    def holds(self, assignment: Assignment) -> bool:
        """Whether all limits are kept, and each tensor is read in one way."""
        asked = {} if self.sharing is None else self.sharing.levels_of(assignment)
        within = all(cost_of(assignment, self.costs[k]) <= limit * (1 + 1e-9) for k, limit in self.limits.items())
        alike = all(assignment[i] == assignment[first] for i, first in self.together())
        return within and alike and all(len(levels) == 1 for levels in asked.values())

    def moved(self, assignment: Assignment, layer: int, choice: int) -> Assignment:
        """One layer takes another choice; those of its module, and those that share a tensor with one of them, follow."""
        own = self.modules[layer] if self.modules else -1
        moving = {layer, *(i for i, module in enumerate(self.modules) if module == own)}
        changed = tuple(choice if i in moving else c for i, c in enumerate(assignment))
        if self.sharing is not None:
            for i in sorted(moving):
                changed = self.sharing.aligned(changed, i)
        return changed

    def together(self) -> list[tuple[int, int]]:
        """Each layer but the first of its module, with that one."""
        return [(i, first) for i, first in enumerate(self.modules) if first != i]


@dataclass(frozen=True)
class Verified(Generic[Result]):
    """What `repair` found: the choice, what was measured of it and of the first, and how many choices were measured."""

    assignment: Assignment
    result: Result
    first: Result
    evaluations: int


def choose(problem: Problem) -> Assignment:
    """The assignment with the smallest summed sensitivity within all limits.

    Raises BudgetError where no assignment keeps them together.
    """
    layers, choices = problem.sensitivity.shape
    losses = np.zeros((0, 1)) if problem.sharing is None else problem.sharing.losses
    objective = np.concatenate([problem.sensitivity.flatten(), losses.flatten()])
    width = len(objective)
    constraints = [_one_each(layers, choices, width)]
    if problem.together():
        constraints.append(_alike(problem.together(), choices, width))
    if problem.sharing is not None:
        constraints += _as_read(problem.sharing, layers, width)
    for name, limit in problem.limits.items():
        row = np.pad(problem.costs[name].reshape(1, -1) / limit, ((0, 0), (0, losses.size)))
        constraints.append(scipy.optimize.LinearConstraint(row, -np.inf, 1))
    result = scipy.optimize.milp(
        objective / max(float(np.abs(objective).max()), 1e-300),
        constraints=constraints,
        integrality=np.ones(width, dtype=np.int64),
        bounds=scipy.optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise BudgetError("some assignment must keep all limits together", got=dict(problem.limits), remedy="raise one of them")
    return tuple(int(c) for c in result.x[: layers * choices].reshape(layers, choices).argmax(1))


def _one_each(layers: int, choices: int, width: int) -> scipy.optimize.LinearConstraint:
    """sum_c y[layer, c] = 1."""
    index = np.arange(layers * choices)
    ones = coo_array((np.ones(len(index)), (index // choices, index)), shape=(layers, width))
    return scipy.optimize.LinearConstraint(ones.tocsr(), 1, 1)


def _alike(pairs: Sequence[tuple[int, int]], choices: int, width: int) -> scipy.optimize.LinearConstraint:
    """y[layer, c] = y[other, c] for each pair of layers and every choice c."""
    mine, other = (np.array([i * choices + c for i in column for c in range(choices)]) for column in zip(*pairs, strict=True))
    row, ones = np.arange(len(mine)), np.ones(len(mine))
    table = coo_array((np.r_[ones, -ones], (np.r_[row, row], np.r_[mine, other])), shape=(len(mine), width))
    return scipy.optimize.LinearConstraint(table.tocsr(), 0, 0)


def _as_read(sharing: Sharing, layers: int, width: int) -> list[scipy.optimize.LinearConstraint]:
    """y[layer, choice] <= z[its tensor, the level that it reads]; of a tensor at most one level, and none that nothing reads."""
    choices, (tensors, levels), first = len(sharing.choices), sharing.losses.shape, layers * len(sharing.choices)
    reading = [(i * choices + c, sharing.reads[i] * levels + b) for i in range(layers) for c, b in _levels(sharing)]
    y, z = (np.array(column, dtype=np.int64) for column in zip(*reading, strict=True))
    pair, every, ones = np.arange(len(y)), np.arange(tensors * levels), np.ones(len(y))
    below = coo_array((np.r_[ones, -ones], (np.r_[pair, pair], np.r_[y, first + z])), shape=(len(y), width))
    single = coo_array((np.ones(len(every)), (every // levels, first + every)), shape=(tensors, width))
    used = coo_array((np.r_[np.ones(len(every)), -ones], (np.r_[every, z], np.r_[first + every, y])), shape=(len(every), width))
    limits = ((below, 0), (single, 1), (used, 0))
    return [scipy.optimize.LinearConstraint(table.tocsr(), -np.inf, most) for table, most in limits]


def _levels(sharing: Sharing) -> list[tuple[int, int]]:
    """The choices that read their tensor rounded (or unrounded on purpose), each with the level."""
    found = [(c, sharing.level(c)) for c in range(len(sharing.choices))]
    return [(c, level) for c, level in found if level is not None]


def rule_of_thumb(facts: Sequence[Facts], problem: Problem, *, low: int, high: int) -> Assignment:
    """The baseline: layers with the most MACs get the high choice, one after the other while the limits hold, the rest low.

    Raises BudgetError where low everywhere is too much.
    """
    assignment: Assignment = (low,) * len(facts)
    if not problem.holds(assignment):
        raise BudgetError("the low choice everywhere must keep the limits", got=dict(problem.limits), remedy="take a lower one")
    for index in sorted(range(len(facts)), key=lambda i: -facts[i].macs):
        raised = problem.moved(assignment, index, high)
        if problem.holds(raised):
            assignment = raised
    return assignment


def repair(
    first: Assignment,
    problem: Problem,
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
        for candidate in _neighbours(current, problem):
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


def _neighbours(current: Assignment, problem: Problem) -> list[Assignment]:
    """The most promising first. Of two moves at once, those are looked at that are best if each does what it does alone."""
    layers, choices = problem.sensitivity.shape
    singles = [(i, c) for i in range(layers) for c in range(choices) if c != current[i]]
    alone = [problem.moved(current, *move) for move in singles]
    change = np.array([problem.predicted(a) for a in alone]) - problem.predicted(current)  # (moves,)
    first, second = np.triu_indices(len(singles), 1)
    fits = np.array([i for i, _ in singles])[first] != np.array([i for i, _ in singles])[second]
    for name, limit in problem.limits.items():
        before = cost_of(current, problem.costs[name])
        spent = np.array([cost_of(a, problem.costs[name]) for a in alone]) - before
        fits &= before + spent[first] + spent[second] <= limit * (1 + 1e-9)
    first, second = first[fits], second[fits]
    best = np.argsort(change[first] + change[second], kind="stable")[:_PAIRS]
    pairs = [problem.moved(alone[a], *singles[b]) for a, b in zip(first[best], second[best], strict=True)]
    found = {candidate for candidate in (*alone, *pairs) if candidate != current and problem.holds(candidate)}
    return [assignment for _, assignment in sorted((problem.predicted(a), a) for a in found)]


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
