"""Batch-norm scale importance (Network Slimming: Liu et al., arXiv:1708.06519, section 3).

    I = mean over the group's batch norms of |gamma|
A batch norm's output has a deviation of |gamma| whatever the layer, so scales compare between layers as they are. Trained with
an L1 penalty on them (`pruning/slimming.py`) many come near 0; without it the scores say less.
A group without a batch norm scores by its relative weight norm times the mean |gamma| of the model: typical atoms are equal.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from paredown.core.errors import RecipeError
from paredown.graph.groups import Group
from paredown.pruning.importance.aggregate import per_atom, relative, shared
from paredown.pruning.importance.magnitude import magnitude


def bn_scale(groups: Sequence[Group], weights: Mapping[str, Tensor], scales: Collection[str]) -> list[Tensor]:
    """One (size,) float64 per group, at least 0; the mean over all atoms is 1.

    weights: parameters by name. scales: which of them are weights of batch norms.
    Raises RecipeError where no group has one.
    """
    found = [_scale(group, weights, scales) for group in groups]
    known = [s for s in found if s is not None]
    if not known:
        raise RecipeError(
            "importance bn_scale needs batch norms with scales on the channels that may be removed",
            got="a model without them",
            remedy='write importance="taylor"',
        )
    typical = torch.cat(known).mean()
    return shared([relative(magnitude(g, weights)) * typical if s is None else s for g, s in zip(groups, found, strict=True)])


def _scale(group: Group, weights: Mapping[str, Tensor], scales: Collection[str]) -> Tensor | None:
    mine = [s for s in group.slices if s.tensor in scales]
    if not mine:
        return None
    owned = per_atom(group, mine, lambda s: torch.ones(weights[s.tensor].shape[s.dimension]))
    return per_atom(group, mine, lambda s: weights[s.tensor].abs()) / owned.clamp_min(1)
