"""A cut to a ratio of the MACs, without data and without training, and its comparison with the masked original.

Scores: L2 norms; the same fraction of every group ("uniform"); floor 0.1, widths not rounded. Where the ratio is out of reach,
the most that may be removed.
"""

from typing import Any

import torch
from torch import nn

from paredown.core.errors import SurgeryError
from paredown.graph.collect import Groups, Keep
from paredown.graph.equality import check_cut
from paredown.graph.probe import culprits
from paredown.graph.surgery import cut
from paredown.graph.units import allowed_counts
from paredown.measure.cost import count_macs
from paredown.pruning.importance.aggregate import relative
from paredown.pruning.importance.magnitude import magnitude
from paredown.pruning.prune import Units
from paredown.pruning.select import select
from paredown.task.batches import Inputs

RATIOS = (0.3, 0.7)
FLOOR, ROUND_TO = 0.1, 1


def cut_to(model: nn.Module, inputs: Inputs, groups: Groups, ratio: float) -> tuple[nn.Module, float]:
    """The cut model and its difference to the masked original. Culprits of a failing cut stay whole, as in `paredown.prune`."""
    while True:
        chosen = _choose(model, inputs, groups, ratio)
        manifest = groups.manifest(chosen)
        try:
            pruned = cut(model, manifest)
            return pruned, check_cut(model, pruned, manifest, groups.consumers, inputs)
        except SurgeryError:
            bad = culprits(model, groups, chosen, inputs)
            if not bad or len(bad) == len(groups.groups):
                raise
            groups = groups.without(bad)


def _choose(model: nn.Module, inputs: Inputs, groups: Groups, ratio: float) -> list[Keep]:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    units = Units(groups, [relative(magnitude(group, weights)).numpy() for group in groups.groups])
    allowed = [allowed_counts(len(s), FLOOR, ROUND_TO) for s in units.scores]
    whole = count_macs(model, inputs)
    other = whole - groups.macs(groups.all_kept())

    def macs(keep: Any) -> float:
        return float(other + groups.macs(units.spread(keep)))

    least = macs([_first(len(s), a[0]) for s, a in zip(units.scores, allowed, strict=True)])
    goal = max(least, (1 - ratio) * whole)
    return units.spread(select(units.scores, macs, goal, allowed, scope="uniform"))


def _first(size: int, count: int) -> Keep:
    result: Keep = torch.arange(size).lt(count).numpy()
    return result
