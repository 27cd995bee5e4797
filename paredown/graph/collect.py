"""Dependency groups as data: what a model lets us remove, each with every slice of every parameter that goes with it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.core.errors import SurgeryError
from paredown.core.report import Barrier
from paredown.graph.labels import Array, Labels
from paredown.graph.manifest import Manifest
from paredown.graph.operation import Knowledge

Keep: TypeAlias = NDArray[np.bool_]  # (size,): which atoms of a group live
Dimension: TypeAlias = tuple[str, int]  # a parameter or buffer, and one of its dimensions


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the atoms of a group stand along one dimension of one tensor.

    atoms, positions: of equal length; atom `atoms[k]` owns index `positions[k]`. An index may have several owners, in one
    group or in several: it lives while all of them do. consumer: the dimension is summed over, so zeroing it masks the input.
    """

    tensor: str
    dimension: int
    atoms: Array
    positions: Array
    consumer: bool


@dataclass(frozen=True, eq=False)
class Group:
    """`size` atoms that occur in the same dimensions of the same tensors: any of them may be removed by itself.

    name: of the first module whose output they are. atoms: their numbers in the store of labels.
    """

    name: str
    atoms: tuple[int, ...]
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        return len(self.atoms)

    @property
    def positions(self) -> int:
        """Indices that one atom owns in the dimension where it owns fewest: 1 for channels, more for attention heads."""
        return min(len(s.positions) for s in self.slices) // self.size


@dataclass(frozen=True, eq=False)
class Extent:
    """One dimension: its size, and which atoms of which groups (by number) own its indices."""

    size: int
    owners: tuple[tuple[int, Array, Array], ...]

    def living(self, keep: Sequence[Keep]) -> Keep:
        """(size,): the indices all of whose owners live."""
        alive = np.ones(self.size, dtype=np.bool_)
        for group, atoms, positions in self.owners:
            alive[positions[~keep[group][atoms]]] = False
        return alive


@dataclass(frozen=True, eq=False)
class Groups:
    """Everything that may be removed from a model, and what may not.

    coupled: sets of groups, by number, that must lose equally many atoms; the model's class can't run otherwise.
    products: MACs of one sample, as (factor, extents): the factor times the living indices of each extent.
    """

    groups: tuple[Group, ...]
    barriers: tuple[Barrier, ...]
    extents: dict[Dimension, Extent]
    products: tuple[tuple[float, tuple[Extent, ...]], ...]
    coupled: tuple[tuple[int, ...], ...] = ()

    @property
    def consumers(self) -> frozenset[Dimension]:
        """Dimensions of weights that are summed over; zeroing what a cut removes there is masking it."""
        return frozenset((s.tensor, s.dimension) for group in self.groups for s in group.slices if s.consumer)

    def all_kept(self) -> list[Keep]:
        """The choice that removes nothing."""
        return [np.ones(group.size, dtype=np.bool_) for group in self.groups]

    def without(self, numbers: Collection[int]) -> "Groups":
        """The same without some groups, which stay whole, and without those coupled to them."""
        gone = {
            g for together in (*self.coupled, *((n,) for n in numbers)) if not {*numbers}.isdisjoint(together) for g in together
        }
        number = {g: i for i, g in enumerate(g for g in range(len(self.groups)) if g not in gone)}

        def narrowed(extent: Extent) -> Extent:
            return Extent(extent.size, tuple((number[g], a, p) for g, a, p in extent.owners if g in number))

        return Groups(
            tuple(self.groups[g] for g in number),
            self.barriers,
            {dimension: narrowed(extent) for dimension, extent in self.extents.items()},
            tuple((factor, tuple(narrowed(extent) for extent in extents)) for factor, extents in self.products),
            tuple(tuple(number[g] for g in together) for together in self.coupled if gone.isdisjoint(together)),
        )

    def manifest(self, keep: Sequence[Keep]) -> Manifest:
        """The cut that leaves of each group the atoms where its array (size,) is true.

        Raises SurgeryError where nothing would be left of a dimension.
        """
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for (tensor, dimension), extent in self.extents.items():
            alive = extent.living(keep)
            if not alive.any():
                raise SurgeryError(
                    "a cut must leave something of every dimension", got=f"{tensor}, dimension {dimension}", remedy="raise floor"
                )
            if not alive.all():
                kept.setdefault(tensor, {})[dimension] = tuple(np.flatnonzero(alive).tolist())
        return Manifest(kept)

    def macs(self, keep: Sequence[Keep]) -> float:
        """MACs of one sample of the convolutions and matrix products, after that cut, without making it."""
        return sum(f * float(np.prod([extent.living(keep).sum() for extent in extents])) for f, extents in self.products)


def collect(known: Knowledge, coupled: Sequence[Collection[int]] = ()) -> Groups:
    """The groups of what is not frozen by now. A group of one atom can't lose it and is left out.

    coupled: sets of atoms; the groups in one set must lose equally many.
    """
    owners = {dimension: _owners(known.labels, labels) for dimension, labels in _dimensions(known).items()}
    members = _members(owners, known.labels)
    number = {atom: (g, i) for g, atoms in enumerate(members) for i, atom in enumerate(atoms)}
    extents = {dimension: _extent(pairs, number) for dimension, pairs in owners.items()}
    slices: list[list[Slice]] = [[] for _ in members]
    for (tensor, dimension), extent in extents.items():
        for g, atoms, positions in extent.owners:
            slices[g].append(Slice(tensor, dimension, atoms, positions, (tensor, dimension) in known.consumers))
    names = _names(slices)
    groups = (Group(name, tuple(atoms), tuple(parts)) for name, atoms, parts in zip(names, members, slices, strict=True))
    products = tuple((f, tuple(_extent(_owners(known.labels, x), number) for x in dims)) for f, dims in known.products)
    pairs = tuple(tuple(sorted({number[atom][0] for atom in together})) for together in coupled)
    return Groups(tuple(groups), tuple(known.barriers), {d: e for d, e in extents.items() if e.owners}, products, pairs)


def _dimensions(known: Knowledge) -> dict[Dimension, Array]:
    """Labels of every dimension of every parameter and buffer, in the order in which the graph uses them."""
    order = {node: i for i, node in enumerate(next(iter(known.dims)).graph.nodes)} if known.dims else {}
    by_use = sorted(known.origins, key=lambda node: min(order[user] for user in node.users))
    return {
        (known.origins[node], d): labels for node in by_use for d, labels in enumerate(known.dims[node][0]) if labels is not None
    }


def _owners(labels: Labels, array: Array) -> list[list[int]]:
    """For each index of a dimension the atoms that it needs."""
    atoms = {int(label): sorted(labels.atoms(int(label))) for label in np.unique(array)}
    return [atoms[label] for label in array.tolist()]


def _members(owners: dict[Dimension, list[list[int]]], labels: Labels) -> list[list[int]]:
    """Atoms that occur in the same dimensions and are of one family, so that a head isn't mixed with a head's width."""
    where: dict[int, dict[Dimension, None]] = {}
    for dimension, indices in owners.items():
        for atom in (atom for atoms in indices for atom in atoms):
            where.setdefault(atom, {})[dimension] = None
    groups: dict[tuple[frozenset[Dimension], int], list[int]] = {}
    for atom, dimensions in where.items():
        groups.setdefault((frozenset(dimensions), labels.family(atom)), []).append(atom)
    return [atoms for atoms in groups.values() if len(atoms) > 1]


def _extent(owners: list[list[int]], number: dict[int, tuple[int, int]]) -> Extent:
    pairs: dict[int, list[tuple[int, int]]] = {}
    for position, atoms in enumerate(owners):
        for group, atom in (number[a] for a in atoms if a in number):
            pairs.setdefault(group, []).append((atom, position))
    columns = {group: np.array(entries, dtype=np.int64).T for group, entries in pairs.items()}
    return Extent(len(owners), tuple((group, atoms, positions) for group, (atoms, positions) in columns.items()))


def _names(slices: Sequence[Sequence[Slice]]) -> list[str]:
    """The module whose output a group is, or the first that reads it; numbered where several groups share one."""
    tensors = (next((s.tensor for s in parts if not s.consumer), parts[0].tensor) for parts in slices)
    modules = [tensor.rpartition(".")[0] or tensor for tensor in tensors]
    return [f"{name}:{modules[:i].count(name)}" if modules.count(name) > 1 else name for i, name in enumerate(modules)]
