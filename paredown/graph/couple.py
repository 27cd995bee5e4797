"""Groups that a class can lose only together: the halves of `chunk(2)`, or an attention's width and the width that it reads.

A class that computes a head's width as `C // num_heads` runs once the width C and the heads' width have shrunk by the same
fraction. Such sets are proposed from the graph, the smallest first, and tried.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from paredown.graph.collect import Group, Groups, Keep, even_pieces
from paredown.graph.operation import Knowledge

Together = tuple[int, ...]


def find_coupled(guilty: Sequence[int], groups: Groups, works: Callable[[Together], bool]) -> list[Together]:
    """Disjoint sets of groups that fail alone and work together.

    guilty: numbers of the groups that fail alone. works: whether the class can lose the same fraction of each.
    """
    left, found = dict.fromkeys(guilty), list[Together]()
    for together in dict.fromkeys(tuple(sorted(proposal)) for proposal in _proposals(guilty, groups)):
        if len(together) > 1 and all(g in left for g in together) and works(together):
            found.append(together)
            for g in together:
                del left[g]
    return found


def split_evenly(known: Knowledge, groups: Groups) -> tuple[Together, ...]:
    """Sets of groups that must lose the same fraction, since a class splits a dimension into parts of one size that hold them.

    Where all groups lose the same fraction, parts that are equal stay equal. One that has as many indices in each part is free.
    """
    owner = np.full(known.labels.count, -1)
    for g, group in enumerate(groups.groups):
        owner[list(group.atoms)] = g
    sets: list[set[int]] = []
    for pieces in even_pieces(known):
        columns = [np.bincount(owner[atoms] + 1, minlength=len(groups.groups) + 1)[1:] for atoms, _ in pieces]
        counts = np.stack(columns, axis=1)  # (groups, pieces): indices of a group in a piece
        together = set(np.flatnonzero((counts != counts[:, :1]).any(1)).tolist())
        if (counts.sum(0) == counts[:, 0].sum()).all() and together:
            overlapping = [s for s in sets if not s.isdisjoint(together)]
            sets = [s for s in sets if s not in overlapping] + [together.union(*overlapping)]
    found = (tuple(sorted(s)) for s in sets)
    return tuple(together for together in found if units(groups, together) > 1)


def shared_counts(known: Knowledge, groups: Groups) -> tuple[Together, ...]:
    """Groups of one size whose heads a module counts by one and the same attribute, as a model does for all of its layers."""
    number = {atom: g for g, group in enumerate(groups.groups) for atom in group.atoms}
    found = []
    for arrays in known.counts.values():
        atoms = np.unique(np.concatenate([known.labels.owners(labels)[0] for labels in arrays]))
        together = sorted({number[atom] for atom in atoms.tolist() if atom in number})
        if len(together) > 1 and len({groups.groups[g].size for g in together}) == 1:
            found.append(tuple(together))
    return tuple(found)


def joined(sets: Iterable[Together]) -> tuple[Together, ...]:
    """Sets that share a group are one."""
    result: list[set[int]] = []
    for together in sets:
        touching = [s for s in result if not s.isdisjoint(together)]
        result = [*(s for s in result if s.isdisjoint(together)), set(together).union(*touching)]
    return tuple(tuple(sorted(s)) for s in result)


def units(groups: Groups, together: Sequence[int]) -> int:
    """How many equal parts groups that must lose the same fraction consist of: the greatest divisor of their sizes."""
    return int(np.gcd.reduce([groups.groups[g].size for g in together]))


def same_fraction(groups: Groups, together: Sequence[int], part: float, random: np.random.Generator) -> dict[int, Keep]:
    """Of each group a random part is lost, of all of them the same; at least one unit, and not all."""
    count = units(groups, together)
    lost = min(max(1, int(count * part)), count - 1)
    return {g: random.permutation(n := groups.groups[g].size) >= n // count * lost for g in together}


def _proposals(guilty: Sequence[int], groups: Groups) -> Iterator[Together]:
    """Sets worth a trial: of one size in one module, of one size anywhere, a stream with the heads that read it, and all."""
    sizes = sorted({groups.groups[g].size for g in guilty})
    equal = [[g for g in guilty if groups.groups[g].size == size] for size in sizes]
    for numbers in equal:
        modules = dict.fromkeys(_module(groups.groups[g]) for g in numbers)
        yield from (tuple(g for g in numbers if _module(groups.groups[g]) == module) for module in modules)
    yield from (tuple(numbers) for numbers in equal)
    for inner in (True, False):
        yield from (_stream(g, guilty, groups, inner=inner) for g in guilty)
    if len(guilty) > 1 and units(groups, guilty) > 1:
        yield tuple(guilty)


def _module(group: Group) -> str:
    """The module around the one that a group is named after."""
    return group.name.partition(":")[0].rpartition(".")[0]


def _stream(stream: int, guilty: Sequence[int], groups: Groups, *, inner: bool) -> Together:
    """A group, and of the factors of each layer that reads it one: the width of heads (inner), or their number."""
    readers = {s.tensor for s in groups.groups[stream].slices if s.consumer}
    others = [g for g in guilty if g != stream and any(s.tensor in readers and not s.consumer for s in groups.groups[g].slices)]
    together = (stream, *(g for g in others if _is_inner(groups.groups[g]) == inner))
    return together if units(groups, together) > 1 else ()


def _is_inner(group: Group) -> bool:
    """Whether an atom's indices all lie apart, as those of a head's width do; those of a head lie side by side."""
    widest = max(group.slices, key=lambda s: len(s.positions))
    mine = np.sort(widest.positions[widest.atoms == 0])
    return len(mine) > 1 and bool((np.diff(mine) > 1).all())
