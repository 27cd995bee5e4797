"""From a budget to recipes: the planner proposes one, is told what its file measured, and proposes the next.

It never sees a model, only ratios to the baseline. The mildest means comes first: int8 alone, which needs no training.
Where that misses the latency or the size, channels are pruned before it: the fewest that make the file small and fast enough,
which `costs` tells of a cut that isn't trained yet. So only the drop has to be found out by training. Where it is too large, the
same is tried with a short distillation after int8, then a cut as much milder as the file's measured margin allows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from paredown.core.budget import Axis
from paredown.core.effort import Effort
from paredown.core.recipe import Recipe
from paredown.core.steps import Distill, Prune, Quantize, Step, Training, Widths

_MARGIN = 0.96  # aim a little below a limit: its interval must fit too, on another measurement
_STEP = 0.025  # of kept fractions
_MULTIPLES = (8, 16)  # of widths: blocks of float kernels, and of many int8 ones
_MUCH = 0.98  # a larger multiple must be that much cheaper
_NARROW = 0.1  # a bracket of kept fractions without a cheap enough one in it: not worth another training

Ratios = dict[Axis, float]
Costs = Callable[[Recipe], Ratios | None]


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
    """limits: ratios to the baseline that the budget names. effort: of each recovery. rounds: proposals at most.

    costs: the ratios of the file that an untrained recipe gives; None where it can't be carried out.
    quantizes: False once it is known that nothing of the model runs in int8.
    """

    limits: Ratios
    effort: Effort
    costs: Costs
    rounds: int = 5
    quantizes: bool = True
    told: list[tuple[float, Outcome]] = field(default_factory=list)  # (kept fraction asked, outcome)
    _asked: float = 1.0
    _preferred: int | None = None  # multiple of widths
    _recovers: bool = False  # whether int8 is followed by a distillation
    _failed: set[float] = field(default_factory=set)  # fractions whose drop was too large, recovered like that

    def ask(self) -> Recipe | None:
        """The next recipe, or None where the budget is met or nothing better is left to try."""
        if not self.told:
            return self._propose(1.0)
        kept, last = self.told[-1]
        if self._met(last) or len(self.told) >= self.rounds:
            return None
        if last.possible and last.complete and not last.drop_met and self.quantizes and not self._recovers:
            self._recovers, self._failed = True, {k for k, o in self.told if not (o.possible and o.complete)}
            if self._cheap(last.ratios):
                return self._propose(kept)
        following = self._next_kept()
        return None if following is None else self._propose(following)

    def tell(self, outcome: Outcome) -> None:
        """What the last proposal came to."""
        self.told.append((self._asked, outcome))
        if not outcome.possible or (not outcome.drop_met and self._asked < 1):
            self._failed.add(self._asked)

    def tell_unquantizable(self) -> None:
        """The model has nothing that runs in int8: what is left is pruning."""
        self.quantizes = False
        self.tell(Outcome(dict.fromkeys(self.limits, 1.0), drop_met=True))

    def _propose(self, kept: float) -> Recipe:
        self._asked = kept
        return _recipe(kept, self._multiple(kept), self.effort, quantize=self.quantizes, recover=self._recovers)

    def _next_kept(self) -> float | None:
        """The largest fraction that is cheap enough, between what lost too much and what cost too much; where there is none the
        middle, which at least comes nearer; None where that is known already.
        """
        least = max(self._failed, default=0.0)
        most = min((k for k, o in self.told if o.possible and o.complete and not self._cheap(o.ratios)), default=1.0)
        margin = _MARGIN if not self._failed else 1.0
        between = [k for k in _FRACTIONS if least + _STEP / 2 < k < most - _STEP / 2]
        low, high = -1, len(between)  # between[low] is cheap enough, between[high] isn't
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._is_cheap(between[middle], margin) else (low, middle)
        if low >= 0:
            return between[low]
        return (least + most) / 2 if most - least >= _NARROW else None

    def _is_cheap(self, kept: float, margin: float) -> bool:
        """Whether the file of such a cut would be within the limits; where it can't be made, a milder one is looked for."""
        ratios = self.costs(self._file(kept, self._multiple(kept)))
        return ratios is None or self._cheap(ratios, margin)

    def _multiple(self, kept: float) -> int:
        """The multiple of widths: of those that allow the cut, what gave the cheaper file at the first fraction where all do."""
        fine, coarse = _MULTIPLES
        if kept == 1 or "latency" not in self.limits or self._worst(kept, coarse) is None:
            return fine
        if self._preferred is None and (cost := self._worst(kept, fine)) is not None:
            self._preferred = coarse if (self._worst(kept, coarse) or cost) < _MUCH * cost else fine
        return self._preferred or coarse

    def _worst(self, kept: float, multiple: int) -> float | None:
        """How near the file comes to its limits: the largest of ratio / limit."""
        ratios = self.costs(self._file(kept, multiple))
        return None if ratios is None else max(ratios[axis] / limit for axis, limit in self.limits.items())

    def _file(self, kept: float, multiple: int) -> Recipe:
        """What decides the costs of a proposal."""
        steps = _recipe(kept, multiple, self.effort, quantize=self.quantizes, recover=False).steps
        return Recipe(tuple(step for step in steps if not isinstance(step, Distill)))

    def _cheap(self, ratios: Ratios, margin: float = 1.0) -> bool:
        return all(ratios[axis] <= limit * margin for axis, limit in self.limits.items())

    def _met(self, outcome: Outcome) -> bool:
        return outcome.possible and outcome.complete and outcome.drop_met and self._cheap(outcome.ratios)


_FRACTIONS = [round(index * _STEP, 3) for index in range(2, round(1 / _STEP))]


def _recipe(kept: float, multiple: int, effort: Effort, *, quantize: bool, recover: bool) -> Recipe:
    """Prune to the kept fraction and distill (not for 1), then int8; `recover`: distill after that too, a third as long."""
    steps: list[Step] = []
    if kept < 1:
        prune = Prune(ratio=round(1 - kept, 3), widths=Widths(round_to=multiple))
        steps += [prune, Distill(training=Training(effort=effort))]
    if quantize:
        steps.append(Quantize())
    if quantize and recover:
        short = replace(effort, amount=max(effort.amount / 3, 1) if effort.unit != "seconds" else effort.amount / 3)
        steps.append(Distill(training=Training(effort=short, learning_rate=2e-3), recalibrate=False))
    return Recipe(tuple(steps))
