"""What the surrogate sees of an architecture: its encoding, the products of every two of its dimensions, its log-cost."""

import functools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.nas.problem import Capacity
from paredown.nas.space import Architecture, Space

Matrix: TypeAlias = NDArray[np.float32]
ENUMERATED = 20_000  # spaces up to this size are looked through whole
_PAIRS = np.float32(0.5)
_PAIRS_AT_MOST = 4_000  # of the products, which a space of 60 dimensions has a hundred thousand of


def features(space: Space, architectures: Sequence[Architecture], capacity: Capacity | None, *, literal: bool = False) -> Matrix:
    """(n, features): 1, the encoding, its products between dimensions (halved; of many always the same ones), the log of the
    capacity where it is known.

    All but the capacity are of the canonical architecture; the capacity is taken relative to that of the space's first one.
    literal: the encoding of each architecture as it stands, too: those that the space calls the same are equally good, and yet
    one may take longer than another, since what leads nowhere is computed all the same.
    """
    canonical = [space.canonicalize(architecture) for architecture in architectures]
    single = space.encode(canonical).astype(np.float32)
    owner = np.repeat(np.arange(len(space.sizes)), [block.shape[1] for block in space.blocks])
    first, second = np.nonzero(np.triu(owner[:, None] != owner[None]))
    if len(first) > _PAIRS_AT_MOST:
        some = np.random.default_rng(0).choice(len(first), _PAIRS_AT_MOST, replace=False)
        first, second = first[some], second[some]
    columns = [np.ones((len(single), 1), np.float32), single, _PAIRS * single[:, first] * single[:, second]]
    if capacity is not None:
        origin = capacity((0,) * len(space.sizes))
        cost = np.log([max(capacity(architecture), 1e-9) / max(origin, 1e-9) for architecture in architectures])
        columns.append(cost.astype(np.float32)[:, None])
    if literal:
        columns.append(space.encode(architectures).astype(np.float32))
    return np.concatenate(columns, axis=1)


@functools.lru_cache(maxsize=4)
def enumerated(space_json: str, capacity: Capacity | None, literal: bool) -> tuple[tuple[Architecture, ...], Matrix]:
    """All architectures of a small space with their features; kept, since searches over one space follow one another."""
    space = Space.from_json(space_json)
    everything = tuple(space.enumerate())
    return everything, features(space, everything, capacity, literal=literal)
