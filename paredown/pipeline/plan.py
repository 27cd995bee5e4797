"""From a budget to recipes: the planner proposes one, is told what its file measured, and proposes the next.

It never sees a model, only ratios to the baseline. The mildest means comes first: int8 alone, which needs no training; where
static int8 gains nothing, as in recurrent models, or their tables alone, dynamic int8.
Where that misses the size, channels are pruned before it: the fewest that make the file small enough, which `costs` tells of a
cut that isn't trained yet. Where such a file is still too slow, the goal of the cut is the latency of the int8 file itself.
So only the drop has to be found out by training. Where it is too large, the same is tried with a short distillation after int8,
then a milder cut. Where no cut's file comes nearer to the limits, none is trained.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from paredown.core.budget import Axis
from paredown.core.recipe import Recipe
from paredown.core.steps import Distill, Prune, Quantize, Step, Training, Weights

_MARGIN = 0.96  # aim a little below a limit: its interval must fit too, on another measurement
_LATENCY_MARGIN = 0.93  # likewise, where the latency itself is the goal: its interval reaches some 4 % to either side
_STEP = 0.025  # of kept fractions
_FRACTIONS = [round(index * _STEP, 3) for index in range(2, round(1 / _STEP))]
_NARROW = 0.1  # a bracket of kept fractions without a cheap enough one in it: not worth another training
_NEARER = 0.97  # nor is a cut whose file would be no nearer to the limits than this fraction of what was reached

Goal = Literal["macs", "latency"]  # what a cut keeps a fraction of
Ratios = dict[Axis, float]
Costs = Callable[[Recipe, Collection[Axis]], Ratios | None]


def int8_steps(limits: Ratios, *, tables: bool) -> tuple[Quantize, ...]:
    """Static, and what takes its place; tables: whether the model looks up any, which count where its size does."""
    weights = Weights(embeddings=tables and "size" in limits)
    return Quantize(weights=weights), Quantize(kind="dynamic", weights=weights)


@dataclass(frozen=True)
class Outcome:
    """What a proposal came to. ratios: of its final file to the baseline. drop_met: the bound of its drop is within the budget.

    possible: False where the proposal could not be carried out at all (more was to be cut than may be).
    complete: False where the gate rolled back a stage of it: its drop was too large already before int8.
    """

    ratios: Ratios
    drop_met: bool
    possible: bool = True
    complete: bool = True


@dataclass
class Planner:
    """limits: ratios to the baseline that the budget names. training: of each recovery. rounds: proposals at most.

    costs: of the file that an untrained recipe gives, the ratios on these axes at least; None where it can't be carried out.
    recovery: what each recovery distills; how it trains, `training` says.
    int8: what proposals end with (the first), and what takes its place where that gains nothing, can run nothing of the model, or
    misses a size by storing its tables alone.
    """

    limits: Ratios
    training: Training
    costs: Costs
    rounds: int = 5
    recovery: Distill = field(default_factory=Distill)
    int8: tuple[Quantize, ...] = int8_steps({}, tables=False)
    told: list[tuple[Goal, float, Outcome]] = field(default_factory=list)  # goal and kept fraction asked, outcome
    _goal: Goal = "macs"
    _asked: float = 1.0
    _recovers: bool = False  # whether int8 is followed by a distillation
    _failed: set[tuple[Goal, float]] = field(default_factory=set)  # what dropped too much, recovered like that

    def ask(self) -> Recipe | None:
        """The next recipe, or None where the budget is met or nothing better is left to try."""
        if not self.told:
            return self._propose(1.0)
        _, kept, last = self.told[-1]
        if self._met(last) or len(self.told) >= self.rounds:
            return None
        if last.possible and last.complete and not last.drop_met and self._trains_int8() and not self._recovers:
            self._recovers, self._failed = True, {(g, k) for g, k, o in self.told if not (o.possible and o.complete)}
            if self._cheap(last.ratios):
                return self._propose(kept)
        self._goal = self._next_goal()
        following = self._next_kept()
        return None if following is None else self._propose(following)

    def tell(self, outcome: Outcome) -> None:
        """What the last proposal came to."""
        if not self.told and outcome.possible and (self._gains_nothing(outcome) or self._another_is_smaller(outcome)):
            self.int8 = self.int8[1:]
            if self.int8:  # which comes first now
                return
        self.told.append((self._goal, self._asked, outcome))
        if not outcome.possible or (not outcome.drop_met and self._asked < 1):
            self._failed.add((self._goal, self._asked))

    def _gains_nothing(self, outcome: Outcome) -> bool:
        return all(outcome.ratios[axis] >= 1 for axis in self.limits)

    def _another_is_smaller(self, outcome: Outcome) -> bool:
        """Whether the size is missed, and what comes next stores more than static int8 and tables: recurrent layers, that is."""
        if len(self.int8) < 2 or not self.int8[0].weights.embeddings or self._cheap(outcome.ratios, axes={"size"}):
            return False
        found = self.costs(Recipe((self.int8[1],)), {"size"})
        return found is not None and found["size"] < _NEARER * outcome.ratios["size"]

    def tell_unquantizable(self) -> None:
        """The model has nothing that runs in such int8: in another, perhaps; else what is left is pruning."""
        self.tell(Outcome(dict.fromkeys(self.limits, 1.0), drop_met=True))

    def _trains_int8(self) -> bool:
        """Whether a distillation after int8 can follow."""
        return bool(self.int8) and self.int8[0].kind == "static"

    def _propose(self, kept: float) -> Recipe:
        self._asked = kept
        return self._recipe(kept, self._goal)

    def _next_goal(self) -> Goal:
        """Latency, where the mildest cut that is small enough is too slow; MACs once such a cut was too large, or impossible."""
        cuts = [outcome for goal, kept, outcome in self.told if goal == "latency" and kept < 1]
        too_large = any(not outcome.possible or not self._cheap(outcome.ratios, axes={"size"}) for outcome in cuts)
        if "latency" not in self.limits or too_large:
            return "macs"
        if len(self.told) > 1:
            return self._goal
        ratios: Ratios | None = self.told[0][2].ratios  # of int8 alone
        if not self._cheap(self.told[0][2].ratios, axes={"size"}):
            small = self._mildest(_FRACTIONS, axes={"size"})
            ratios = None if small is None else self.costs(self._untrained(small), self.limits)
        return "macs" if ratios is not None and self._cheap(ratios) else "latency"

    def _next_kept(self) -> float | None:
        """The mildest cut that is cheap enough, between what lost too much and what cost too much; where there is none the
        middle, if it at least comes nearer; None where it doesn't, or is known already.
        """
        least = max((kept for goal, kept in self._failed if goal == self._goal), default=0.0)
        costly = [k for g, k, o in self.told if g == self._goal and o.possible and o.complete and not self._cheap(o.ratios)]
        most = min(costly, default=1.0)
        if self._goal == "latency":
            wanted = self._by_latency()
        else:
            wanted = self._mildest([k for k in _FRACTIONS if least + _STEP / 2 < k < most - _STEP / 2]) or least
        if least + _STEP / 2 < wanted < most - _STEP / 2:
            return wanted
        middle = (least + most) / 2
        return middle if most - least >= _NARROW and self._is_nearer(middle) else None

    def _is_nearer(self, kept: float) -> bool:
        """Whether the file of a cut would be nearer to the limits than those within the drop so far."""
        ratios = self.costs(self._untrained(kept), self.limits)
        reached = [self._excess(o.ratios) for _, _, o in self.told if o.possible and o.complete and o.drop_met]
        return ratios is not None and self._excess(ratios) < _NEARER * min(reached, default=math.inf)

    def _excess(self, ratios: Ratios) -> float:
        """What the worst axis is of its limit; 1 is within the budget."""
        return max(ratios[axis] / limit for axis, limit in self.limits.items())

    def _by_latency(self) -> float:
        """The fraction of the baseline's latency to ask for: what was asked last, corrected by what came of it."""
        wanted = self.limits["latency"] * _LATENCY_MARGIN
        asked = [(k, o) for g, k, o in self.told if g == "latency" and o.possible and o.complete and k < 1]
        return round(wanted * asked[-1][0] / asked[-1][1].ratios["latency"] if asked else wanted, 3)

    def _mildest(self, fractions: list[float], axes: Collection[Axis] | None = None) -> float | None:
        """The largest of the ascending fractions whose file is within the limits (of some axes), by bisection."""
        low, high = -1, len(fractions)  # fractions[low] is cheap enough, fractions[high] isn't
        while high - low > 1:
            middle = (low + high) // 2
            ratios = self.costs(self._untrained(fractions[middle]), axes or self.limits)
            cheap = ratios is None or self._cheap(ratios, 1.0 if self._failed else _MARGIN, axes)  # None: look for a milder one
            low, high = (middle, high) if cheap else (low, middle)
        return fractions[low] if low >= 0 else None

    def _untrained(self, kept: float) -> Recipe:
        """What decides the bytes and the latency of a cut to so many MACs."""
        return Recipe(tuple(step for step in self._recipe(kept, "macs").steps if not isinstance(step, Distill)))

    def _cheap(self, ratios: Ratios, margin: float = 1.0, axes: Collection[Axis] | None = None) -> bool:
        return all(ratios[axis] <= limit * margin for axis, limit in self.limits.items() if axes is None or axis in axes)

    def _met(self, outcome: Outcome) -> bool:
        return outcome.possible and outcome.complete and outcome.drop_met and self._cheap(outcome.ratios)

    def _recipe(self, kept: float, goal: Goal) -> Recipe:
        """Prune to the kept fraction and distill (not for 1), then int8; `_recovers`: distill after that too, outputs alone, a
        third as long and at a tenth of the learning rate.
        """
        steps: list[Step] = []
        if kept < 1:
            steps += [self._prune(kept, goal), replace(self.recovery, training=self.training)]
        steps += self.int8[:1]
        if self._recovers:
            amount, unit = self.training.effort.amount / 3, self.training.effort.unit
            effort = replace(self.training.effort, amount=amount if unit == "seconds" else max(amount, 1))
            short = replace(self.training, effort=effort, learning_rate=self.training.learning_rate / 10)
            outputs = replace(self.recovery, features=(), balance=False)
            steps.append(replace(outputs, training=short, recalibrate=False))
        return Recipe(tuple(steps))

    def _prune(self, kept: float, goal: Goal) -> Prune:
        if goal == "latency":
            return Prune(latency=f"{kept:g}x", precision="int8" if self._trains_int8() else "fp32")
        return Prune(ratio=round(1 - kept, 3))
