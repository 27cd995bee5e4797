"""Filter pruning via geometric median (He et al., arXiv:1811.00250, eq. 6-9).

    I_k = sum_j ||F_k - F_j||_2
F_k: all weights that go with atom k, producers and consumers, as one vector. What lies in the midst of the others is what they
can replace; what is small is not for that reason unimportant.
Distances are summed over the slices of the group, so that the vectors of a large group are never all in memory.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from paredown.graph.groups import Group, Slice
from paredown.pruning.importance.aggregate import matrices

_ROWS = 1024  # of the matrix of distances at once


def fpgm(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    """(size,) float64, at least 0. weights: parameters by name; vectors and buffers don't count."""
    vectors = [v for s in matrices(group, weights) for v in _vectors(group, s, weights[s.tensor])]
    result = torch.zeros(group.size, dtype=torch.float64)
    for start in range(0, group.size, _ROWS):
        rows = slice(start, start + _ROWS)
        squares = torch.zeros(len(result[rows]), group.size, dtype=torch.float64)
        for vector in vectors:
            squares += torch.cdist(vector[rows], vector).square()
        result[rows] = squares.sqrt().sum(1)
    return result


def _vectors(group: Group, part: Slice, weight: Tensor) -> list[Tensor]:
    """(size, rest) for the first index that each atom owns in the slice, for the second, and so on."""
    by_index = weight.detach().to("cpu", torch.float64).movedim(part.dimension, 0).flatten(1)  # (n, rest)
    owned: list[list[int]] = [[] for _ in range(group.size)]
    for atom, position in zip(part.atoms.tolist(), part.positions.tolist(), strict=True):
        owned[atom].append(position)
    fewest = min(len(positions) for positions in owned)
    return [by_index[[positions[i] for positions in owned]] for i in range(fewest)]
