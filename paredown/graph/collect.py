"""Dependency groups as data: what a model lets us remove, each with every slice of every parameter that goes with it."""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.core.errors import SurgeryError
from paredown.core.report import Barrier
from paredown.graph.labels import Array, Labels
from paredown.graph.manifest import Manifest
from paredown.graph.operation import Knowledge
from paredown.graph.places import Dimension, Places, dimensions_of
from paredown.graph.statistics import Statistic

Keep: TypeAlias = NDArray[np.bool_]  # (size,): which atoms of a group live
Owners: TypeAlias = tuple[Array, Array]  # (atoms, positions), of equal length
Reader: TypeAlias = Dimension | Statistic  # what a masked run must change, so that it doesn't read what is removed


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
class Scale:
    """Rows (tensor, dimension, rows) to be multiplied by sqrt(living / size) of a width that a class divides by."""

    width: Extent
    targets: tuple[tuple[str, int, Array], ...]


@dataclass(frozen=True, eq=False)
class Attribute:
    """A whole number, named `name`, that a module keeps of a dimension."""

    module: str
    name: str
    extent: Extent


@dataclass(frozen=True, eq=False)
class Groups:
    """Everything that may be removed from a model, and what may not.

    coupled: sets of groups, by number, that must lose the same fraction of their atoms; the model's class can't run otherwise.
    products: MACs of one sample, as (factor, extents): the factor times the living indices of each extent.
    contracted: rows that make the activations which are multiplied with each other; masking them masks the product.
    """

    groups: tuple[Group, ...]
    barriers: tuple[Barrier, ...]
    extents: dict[Dimension, Extent]
    products: tuple[tuple[float, tuple[Extent, ...]], ...]
    coupled: tuple[tuple[int, ...], ...] = ()
    contracted: frozenset[Dimension] = frozenset()
    statistics: tuple[Statistic, ...] = ()
    scales: tuple[Scale, ...] = ()
    attributes: tuple[Attribute, ...] = ()

    @functools.cached_property
    def consumers(self) -> frozenset[Reader]:
        """Dimensions of weights that are summed over (zeroing what a cut removes there is masking it), and statistics."""
        consumers = ((s.tensor, s.dimension) for group in self.groups for s in group.slices if s.consumer)
        return frozenset((*consumers, *self.contracted, *self.statistics))

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

        return replace(
            self,
            groups=tuple(self.groups[g] for g in number),
            extents={dimension: narrowed(extent) for dimension, extent in self.extents.items()},
            products=tuple((factor, tuple(narrowed(extent) for extent in extents)) for factor, extents in self.products),
            coupled=tuple(tuple(number[g] for g in together) for together in self.coupled if gone.isdisjoint(together)),
            scales=tuple(replace(scale, width=narrowed(scale.width)) for scale in self.scales),
            attributes=tuple(replace(attribute, extent=narrowed(attribute.extent)) for attribute in self.attributes),
        )

    def manifest(self, keep: Sequence[Keep]) -> Manifest:
        """The cut that leaves of each group the atoms where its array (size,) is true.

        Raises SurgeryError where nothing would be left of a dimension.
        """
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        indices: dict[int, tuple[int, ...]] = {}  # id of an extent -> what is kept of it
        for (tensor, dimension), extent in self.extents.items():
            if id(extent) not in indices:
                indices[id(extent)] = tuple(np.flatnonzero(extent.living(keep)).tolist())
            here = indices[id(extent)]
            if not here:
                raise SurgeryError(
                    "a cut must leave something of every dimension", got=f"{tensor}, dimension {dimension}", remedy="raise floor"
                )
            if len(here) < extent.size:
                kept.setdefault(tensor, {})[dimension] = here
        return Manifest(kept, self._factors(keep, kept), self._attributes(keep))

    def _factors(
        self, keep: Sequence[Keep], kept: dict[str, dict[int, tuple[int, ...]]]
    ) -> dict[str, dict[int, tuple[float, ...]]]:
        result: dict[str, dict[int, tuple[float, ...]]] = {}
        for scale in self.scales:
            living = int(scale.width.living(keep).sum())
            if living == scale.width.size:
                continue
            for tensor, dimension, rows in scale.targets:
                indices = kept.get(tensor, {}).get(dimension) or range(self.extents[tensor, dimension].size)
                factors = np.where(np.isin(indices, rows), np.sqrt(living / scale.width.size), 1.0)
                before = result.setdefault(tensor, {}).get(dimension)
                result[tensor][dimension] = tuple((factors if before is None else factors * before).tolist())
        return result

    def _attributes(self, keep: Sequence[Keep]) -> dict[str, dict[str, int]]:
        result: dict[str, dict[str, int]] = {}
        for attribute in self.attributes:
            living = int(attribute.extent.living(keep).sum())
            if living != attribute.extent.size:
                result.setdefault(attribute.module, {})[attribute.name] = living
        return result

    def macs(self, keep: Sequence[Keep]) -> float:
        """MACs of one sample of the convolutions and matrix products, after that cut, without making it."""
        return sum(f * float(np.prod([extent.living(keep).sum() for extent in extents])) for f, extents in self.products)


def collect(known: Knowledge, coupled: Sequence[Collection[int]] = ()) -> Groups:
    """The groups of what is not frozen by now. A group of one atom can't lose it and is left out.

    coupled: sets of atoms; the groups in one set must lose equally many.
    """
    dimensions = dimensions_of(known)
    owners = dict(zip(dimensions, known.labels.owners_of([*dimensions.values()]), strict=True))
    number = _Numbers(known.labels, [*owners.values()], [pair for pairs in even_pieces(known) for pair in pairs])
    members = number.members
    extents = {dimension: number.extent(len(labels), owners[dimension]) for dimension, labels in dimensions.items()}
    slices: list[list[Slice]] = [[] for _ in members]
    for (tensor, dimension), extent in extents.items():
        for g, atoms, positions in extent.owners:
            slices[g].append(Slice(tensor, dimension, atoms, positions, (tensor, dimension) in known.consumers))
    contracted = _contracted(known, owners)
    slices = [_read(parts, contracted) for parts in slices]
    names = _names(slices)
    groups = (Group(name, tuple(atoms.tolist()), tuple(parts)) for name, atoms, parts in zip(names, members, slices, strict=True))
    products = tuple((f, tuple(number.of(x) for x in dims)) for f, dims in known.products)
    pairs = tuple(tuple(np.unique(number.groups[sorted(together)]).tolist()) for together in coupled)
    return Groups(
        tuple(groups),
        tuple(known.barriers),
        {d: e for d, e in extents.items() if e.owners},
        products,
        pairs,
        contracted,
        _statistics(known),
        tuple(Scale(number.of(fold.width), fold.targets) for fold in known.folds),
        tuple(Attribute(m, name, number.of(x)) for m, name, x in known.attributes),
    )


def even_pieces(known: Knowledge) -> list[list[Owners]]:
    """Atoms of the parts into which a class splits a dimension evenly, where no index of them needs several atoms."""
    found = (known.labels.owners_of(pieces) for pieces in known.pieces)
    return [pairs for pairs in found if all(len(np.unique(positions)) == len(positions) for _, positions in pairs)]


def _statistics(known: Knowledge) -> tuple[Statistic, ...]:
    """Those over dimensions that may lose an index, each index with the weight's index that it lives with."""
    if not known.statistics:
        return ()
    places = Places.of(known)
    found = (
        (call, axis, labels, tuple(places.sources(known.labels.canonical(labels)))) for call, axis, labels in known.statistics
    )
    return tuple(Statistic(call, axis, len(labels), sources) for call, axis, labels, sources in found if sources)


def _contracted(known: Knowledge, owners: dict[Dimension, Owners]) -> frozenset[Dimension]:
    """Every dimension of a weight that makes one of two activations which are multiplied and summed over it."""
    labels = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *known.contracted]))
    multiplied = np.zeros(known.labels.count, dtype=np.bool_)
    multiplied[known.labels.owners(labels)[0]] = True
    return frozenset(key for key, (atoms, _) in owners.items() if multiplied[atoms].any())


def _read(slices: list[Slice], contracted: frozenset[Dimension]) -> list[Slice]:
    """Where nothing but another activation reads a group, its own rows stand for what is read."""
    if any(s.consumer for s in slices):
        return slices
    return [replace(s, consumer=(s.tensor, s.dimension) in contracted) for s in slices]


class _Numbers:
    """Which group, and which atom of it, an atom of the store is.

    members: the atoms of each group. groups, indices (atoms of the store,): number of the group, -1 for none, and place in it.
    """

    def __init__(self, labels: Labels, owners: Sequence[Owners], pieces: Sequence[Owners]) -> None:
        self.labels, self._known = labels, dict[tuple[int, bytes, bytes], Extent]()
        self.members = _members(owners, pieces, labels)
        self.groups, self.indices = np.full(labels.count, -1), np.zeros(labels.count, dtype=np.int64)
        for group, atoms in enumerate(self.members):
            self.groups[atoms], self.indices[atoms] = group, np.arange(len(atoms))

    def extent(self, size: int, owners: Owners) -> Extent:
        """A dimension of that size as an extent: one for all dimensions that the same atoms own in the same way."""
        atoms, positions = owners
        key = size, atoms.tobytes(), positions.tobytes()
        if key not in self._known:
            groups = self.groups[atoms]
            found = ((group, groups == group) for group in dict.fromkeys(groups.tolist()) if group >= 0)
            self._known[key] = Extent(size, tuple((group, self.indices[atoms[here]], positions[here]) for group, here in found))
        return self._known[key]

    def of(self, labels: Array) -> Extent:
        """The extent of a dimension with these labels."""
        return self.extent(len(labels), self.labels.owners(labels))


def _members(owners: Sequence[Owners], pieces: Sequence[Owners], labels: Labels) -> list[Array]:
    """Atoms that occur in the same dimensions and are of one family, so that a head isn't mixed with a head's width.

    owners: of each dimension the atoms, and where they stand. Groups, and atoms in them, come in the order in which they occur.
    pieces: of each part that has to stay as large as others; the atoms of one group occur in each equally often.
    """
    occurring = np.concatenate([np.zeros(0, dtype=np.int64), *(atoms for atoms, _ in owners)])
    distinct, first = np.unique(occurring, return_index=True)
    kinds, latest = np.zeros(labels.count, dtype=np.int64), 0  # atom -> number of the set of dimensions in which it occurs
    for atoms in {atoms.tobytes(): atoms for atoms, _ in (*owners, *pieces)}.values():  # what is the same tells nothing new
        here, times = np.unique(atoms, return_counts=True)
        before, kind = np.unique(kinds[here] * (len(atoms) + 1) + times, return_inverse=True)
        kinds[here], latest = latest + 1 + kind, latest + len(before)
    ordered = distinct[np.argsort(first)]
    groups: dict[tuple[int, int], list[int]] = {}
    for atom, kind, family in zip(ordered.tolist(), kinds[ordered].tolist(), labels.families(ordered).tolist(), strict=True):
        groups.setdefault((kind, family), []).append(atom)
    return [np.array(atoms) for atoms in groups.values() if len(atoms) > 1]


def _names(slices: Sequence[Sequence[Slice]]) -> list[str]:
    """The module whose output a group is, or the first that reads it; numbered where several groups share one."""
    tensors = (next((s.tensor for s in parts if not s.consumer), parts[0].tensor) for parts in slices)
    modules = [tensor.rpartition(".")[0] or tensor for tensor in tensors]
    return [f"{name}:{modules[:i].count(name)}" if modules.count(name) > 1 else name for i, name in enumerate(modules)]
