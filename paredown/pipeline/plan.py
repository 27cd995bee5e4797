"""From a budget to recipes: the planner proposes one, is told what its file measured, and proposes the next.

It never sees a model, only ratios to the baseline. The mildest means comes first: int8 alone, which needs no training.
Where that misses the latency or the size, channels are pruned before it, as many as the measurements say. Where only the drop is
too large, the same is tried with a short distillation after int8.

Cost against the kept fraction k of the MACs is taken as a line through (1, int8 alone) and the last measured point; before
there is one, size = k * size(1) and latency = (0.35 + 0.65 k) * latency(1), since a part of a latency isn't arithmetic.
"""

from dataclasses import dataclass, field, replace

from paredown.core.budget import Axis
from paredown.core.effort import Effort
from paredown.core.recipe import Recipe
from paredown.core.steps import Distill, Prune, Quantize, Step, Training

_MARGIN = 0.96  # aim a little below a limit: its interval must fit too
_FIXED_LATENCY = 0.35  # fraction of a latency that no pruning removes; ResNet-20 measured
_LEAST_KEPT = 0.04


@dataclass(frozen=True)
class Outcome:
    """What a proposal came to. ratios: of its final file to the baseline. drop_met: the bound of its drop is within the budget.

    possible: False where the proposal could not be carried out at all (more was to be cut than may be).
    complete: False where the gate rolled back a stage of it, so that the ratios are those of a part: the pruned file before int8.
    """

    ratios: dict[Axis, float]
    drop_met: bool
    possible: bool = True
    complete: bool = True


@dataclass
class Planner:
    """limits: ratios to the baseline that the budget names. effort: of each recovery. rounds: proposals at most.
    quantizes: False once it is known that nothing of the model runs in int8.
    """

    limits: dict[Axis, float]
    effort: Effort
    rounds: int = 5
    quantizes: bool = True
    told: list[tuple[float, Outcome]] = field(default_factory=list)  # (kept fraction asked, outcome)
    _asked: float = 1.0
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
            if self._costs_met(last):
                return self._propose(kept)
        following = self._next_kept()
        return None if following is None else self._propose(following)

    def tell(self, outcome: Outcome) -> None:
        """What the last proposal came to. Of a part of one, the whole is taken to cost what int8 alone leaves of that part."""
        if not outcome.complete and self.told:
            whole = self.told[0][1].ratios
            outcome = replace(outcome, ratios={axis: ratio * whole[axis] for axis, ratio in outcome.ratios.items()})
        self.told.append((self._asked, outcome))
        if not outcome.possible or (not outcome.drop_met and self._asked < 1):
            self._failed.add(self._asked)

    def tell_unquantizable(self) -> None:
        """The model has nothing that runs in int8: what is left is pruning."""
        self.quantizes = False
        self.tell(Outcome(dict.fromkeys(self.limits, 1.0), drop_met=True))

    def _propose(self, kept: float) -> Recipe:
        self._asked = kept
        return _recipe(kept, self.effort, quantize=self.quantizes, recover=self._recovers)

    def _next_kept(self) -> float | None:
        """The kept fraction to try: what the costs ask for, inside the bracket that the drops leave; None: it is empty."""
        too_small = max(self._failed, default=_LEAST_KEPT)
        too_large = min((k for k, o in self.told if o.possible and not self._costs_met(o)), default=1.0)
        wanted = min(self._kept_for(axis) for axis in self.limits)
        if wanted >= too_large:
            wanted = (too_large + too_small) / 2
        if wanted <= too_small:
            wanted = (too_large + too_small) / 2 if too_small > _LEAST_KEPT else _LEAST_KEPT
        return None if too_large - too_small < 0.03 or any(abs(wanted - k) < 0.01 for k, _ in self.told) else wanted

    def _kept_for(self, axis: Axis) -> float:
        """The kept fraction at which the line through what was measured meets the limit of one axis."""
        goal, whole = self.limits[axis] * _MARGIN, self.told[0][1].ratios[axis]
        points = [(k, o.ratios[axis]) for k, o in self.told if k < 1 and o.possible]
        if whole <= self.limits[axis]:
            return 1.0
        if points and points[-1][1] < whole:
            k, cost = points[-1]
            return max(1 - (1 - k) * (whole - goal) / (whole - cost), _LEAST_KEPT)
        if axis == "size":
            return goal / whole
        return max((goal / whole - _FIXED_LATENCY) / (1 - _FIXED_LATENCY), _LEAST_KEPT)

    def _costs_met(self, outcome: Outcome) -> bool:
        return all(outcome.ratios[axis] <= limit for axis, limit in self.limits.items())

    def _met(self, outcome: Outcome) -> bool:
        return outcome.possible and outcome.drop_met and self._costs_met(outcome)


def _recipe(kept: float, effort: Effort, *, quantize: bool, recover: bool) -> Recipe:
    """Prune to the kept fraction and distill (not for 1), then int8; `recover`: distill after that too, a third as long."""
    steps: list[Step] = []
    if kept < 1:
        steps += [Prune(ratio=round(1 - kept, 3)), Distill(training=Training(effort=effort))]
    if quantize:
        steps.append(Quantize())
    if quantize and recover:
        short = replace(effort, amount=max(effort.amount / 3, 1) if effort.unit != "seconds" else effort.amount / 3)
        steps.append(Distill(training=Training(effort=short, learning_rate=2e-3), recalibrate=False))
    return Recipe(tuple(steps))
