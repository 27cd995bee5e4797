"""Gates that close until a goal in MACs is met: which are open, and the pull that keeps their cost where it is.

    g_c = sigmoid((s_c - tau) / T),   tau: such that cost(g) = target                    (soft)
    open_c = 1 where s_c is above the threshold at which cost(open) <= target, else 0    (hard)
cost: MACs of the model as a share of all, an index of a dimension counting as far as the gates of its atoms are open.
Along cost(g) = target the gradient of a score is that of the Lagrangian,
    dL/ds_c = dg_c/ds_c (dL/dg_c - lambda dcost/dg_c)
with the multiplier, a penalty per MAC, that the target takes: no weight has to be found for it, and what an atom costs follows
what else is closed by then. The target falls:
    step       up to 0.1   0.1 to 0.5 of the effort       from 0.5 on
    MACs left  all         goal + (1 - goal) (1 - u)^3    the goal: what stays is chosen, and is trained
u: from 0 to 1; the cubic schedule of Zhu and Gupta (arXiv:1710.01878). So what is cut in the end is closed by then, and the
second half of the training already recovers from it. (A norm over channels counts closed ones too, until they are cut.)
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paredown.graph.collect import Keep
from paredown.graph.groups import Extent, Groups
from paredown.pruning.gates import Gates, Objective, StraightThrough, rounds
from paredown.pruning.select import Scores
from paredown.train.processes import from_first

_WHOLE, _CHOSEN = 0.1, 0.5  # of the effort: until then nothing is closed; from then on it is settled what stays
_MOST = 0.95  # of the MACs that soft gates leave: where all are open, none would have a gradient
_RATE = 0.05  # of the scores: a gate opens or shuts within about a hundred steps
_STEPS = 40  # of a bisection
_ROUNDING = 1e-9  # all MACs may add up to a little more than 1


@dataclass(frozen=True, eq=False)
class Goal:
    """share: of the present MACs, what may stay. choose: (model, scores (size,) per group) -> which atoms of each group stay.

    objective: (model, batch) -> scalar tensor, what is minimized on the way, a distillation loss for one; None: the task's own.
    """

    share: float
    choose: Callable[[nn.Module, Sequence[Scores]], list[Keep]]
    objective: Objective | None = None


class SoftMacs:
    """MACs of one sample as a share of the whole model's, by how far gates are open.

    groups: with atoms numbered one after another, group by group. whole: MACs of the model. Evaluated hundreds of times a step,
    so all dimensions are computed in one go.
    """

    def __init__(self, groups: Groups, whole: float, device: torch.device | str = "cpu") -> None:
        self._other = 1 - groups.macs(groups.all_kept()) / whole
        first = [*itertools.accumulate((group.size for group in groups.groups), initial=0)]
        extents = {id(extent): extent for _, several in groups.products for extent in several}
        number = {key: n for n, key in enumerate(extents)}
        start, owned = 0, list[list[tuple[Tensor, Tensor]]]()
        of_index = list[Tensor]()
        for n, extent in enumerate(extents.values()):
            owned.append(_owned(extent, first, start))
            of_index.append(torch.full((extent.size,), n))
            start += extent.size
        depth = max(map(len, owned), default=0)
        merged = [[each[d] for each in owned if d < len(each)] for d in range(depth)]
        self._rounds = [
            (torch.cat([a for a, _ in parts]).to(device), torch.cat([p for _, p in parts]).to(device)) for parts in merged
        ]
        self._of_index = torch.cat(of_index).to(device) if of_index else torch.zeros(0, dtype=torch.long, device=device)
        self._extents = len(extents)
        longest = max((len(several) for _, several in groups.products), default=0)
        rows = [[number[id(e)] for e in several] + [self._extents] * (longest - len(several)) for _, several in groups.products]
        self._products = torch.tensor(rows, dtype=torch.long, device=device).view(len(rows), longest)
        self._factors = torch.tensor([f / whole for f, _ in groups.products], dtype=torch.float64, device=device)

    def __call__(self, gates: Tensor) -> Tensor:
        """gates (atoms,) float64, of all groups -> scalar."""
        living = gates.new_ones(len(self._of_index))
        for atoms, positions in self._rounds:
            living = living * gates.new_ones(len(self._of_index)).index_copy(0, positions, gates[atoms])
        widths = gates.new_zeros(self._extents).index_add(0, self._of_index, living)
        widths = torch.cat([widths, gates.new_ones(1)])  # of the places where a product has fewer dimensions
        return self._other + (self._factors * widths[self._products].prod(1)).sum()


@dataclass(eq=False)
class Closing:
    """Closes gates step by step until the goal is met, has the choice made, and leaves it at that."""

    gated: Gates
    goal: Goal
    macs: SoftMacs
    _settled: bool = False

    def optimizer(self) -> torch.optim.Optimizer:
        """Steps of one length for all: gates compete, and what counts is which way each is pulled most of the time."""
        return torch.optim.Adam([self.gated.scores], lr=_RATE)

    def rate(self, _fraction: float) -> float:
        """The same at any time: once chosen, nothing learns."""
        return _RATE

    def set_(self, fraction: float) -> None:
        """Sets which gates are open. fraction: of the effort that is spent, in [0, 1]."""
        if fraction >= _CHOSEN:
            self._settle_()
            return
        scores, target = self.gated.scores + self.gated.drift, target_at(fraction, self.goal.share)
        soft = soft_gates(scores, self.macs, min(target, _MOST), self.gated.temperature)
        hard = hard_gates(scores.detach(), self.macs, target, self._best(scores))
        self.gated.closing = StraightThrough(hard, soft)

    def _settle_(self) -> None:
        if self._settled:
            return
        scores = (self.gated.scores + self.gated.drift).detach()
        soft = soft_gates(scores, self.macs, min(self.goal.share, _MOST), 1.0)
        if not self.gated.open.any():  # else it was chosen before an interruption
            by_group = [each.cpu().numpy() for each in self.gated.by_group(soft)]
            chosen = torch.from_numpy(np.concatenate(self.goal.choose(self.gated.body.model, by_group)))
            self.gated.open.copy_(from_first(chosen.to(soft)).bool())
        self.gated.closing = StraightThrough(self.gated.open.to(soft), soft)
        self._settled = True

    def _best(self, scores: Tensor) -> Tensor:
        """The best atom of each group: a layer without any would leave its batch norm without a gradient of any use."""
        first = itertools.accumulate(self.gated.sizes, initial=0)
        best = [start + int(each.argmax()) for start, each in zip(first, self.gated.by_group(scores), strict=False)]
        return torch.tensor(best, device=scores.device)

    def added(self) -> Tensor:
        """Nothing: gates pull by their scores alone."""
        return self.gated.scores.new_zeros(())

    def chosen(self) -> list[Keep] | None:
        return [each.cpu().numpy() for each in self.gated.by_group(self.gated.open)]


def target_at(fraction: float, share: float) -> float:
    """MACs that are open, of all, when this fraction of the effort is spent."""
    passed = min(1.0, max(0.0, (fraction - _WHOLE) / (_CHOSEN - _WHOLE)))
    return share + (1 - share) * (1 - passed) ** 3


def soft_gates(scores: Tensor, macs: SoftMacs, target: float, temperature: float) -> Tensor:
    """scores (atoms,) float64 -> gates (atoms,) in (0, 1) at this cost, or at the nearest that there is; differentiable."""

    def gates(threshold: Tensor | float) -> Tensor:
        return torch.sigmoid((scores - threshold) / temperature)

    with torch.no_grad():
        margin = 40 * temperature
        found = _bisected(lambda tau: float(macs(gates(tau))), scores, target, margin)
    tau = torch.tensor(found, dtype=scores.dtype, device=scores.device, requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(macs(torch.sigmoid((scores.detach() - tau) / temperature)), tau)
    cost = macs(gates(found))
    return gates(found - (cost - cost.detach()) / slope.clamp(max=-1e-9))  # tau moves with the scores so that the cost stays


@torch.no_grad()
def hard_gates(scores: Tensor, macs: SoftMacs, target: float, best: Tensor) -> Tensor:
    """scores (atoms,) float64 -> (atoms,) of 0 and 1, at this cost or just under it. best: atoms that stay open."""

    def gates(threshold: float) -> Tensor:
        return (scores > threshold).to(scores.dtype).index_fill(0, best, 1.0)

    return gates(_bisected(lambda threshold: float(macs(gates(threshold))), scores, target, 1.0))


def _bisected(cost: Callable[[float], float], scores: Tensor, target: float, margin: float) -> float:
    """A threshold, up to `margin` beyond the scores, at which the cost is at most the target."""
    low, high = float(scores.min()) - margin, float(scores.max()) + margin
    target += _ROUNDING
    if cost(low) <= target:
        return low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= target else (middle, high)
    return high


def _owned(extent: Extent, first: Sequence[int], start: int) -> list[tuple[Tensor, Tensor]]:
    """(atoms, indices) of one dimension, numbered over all groups and all dimensions, no index twice in a part."""
    parts = [(g, *part) for g, a, p in extent.owners for part in rounds(a, p)]
    return [(torch.from_numpy(a + first[g]), torch.from_numpy(p + start)) for g, a, p in parts]
