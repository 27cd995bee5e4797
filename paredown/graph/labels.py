"""Labels: which indices of which dimensions live or die together.

Every dimension of every tensor carries None (fixed: a batch, an image's width) or an array (size,) of labels, one per index.
A label stands for a set of *atoms*, all of which must live for the index to live; the empty set is label 0: always lives.
An atom is a class of a union-find, and may be *replaced* by a set of other atoms: by a set of factors where a reshape splits
its dimension, by the empty set where it is frozen. An array of labels never changes: what its labels stand for does.
"""

import functools
from collections.abc import Collection, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paredown.graph.atom_sets import Array, AtomSets, Pairs

Dims: TypeAlias = tuple[Array | None, ...]
Atoms: TypeAlias = frozenset[int]

__all__ = ["Array", "Atoms", "Dims", "Labels"]

_LIVE, _FROZEN, _REPLACED = 0, 1, 2
_BITS = 32  # of an atom's number


class Labels:
    """The store. Atoms that were made together are of one *family*; uniting two atoms unites their families.

    Nearly all labels are of one atom: atom a has the label 2a + 1. Even numbers count the sets of several atoms. Whole arrays
    are handled at once. Where nothing has become of the atoms of a label since it was made, it is its own canonical form.
    """

    def __init__(self) -> None:
        self._sets = AtomSets()  # half of an even label -> its atoms
        self.count = 0  # of atoms; the arrays below are longer
        self._parents = np.zeros(1024, dtype=np.int64)  # atom -> atom
        self._families = np.zeros(1024, dtype=np.int64)  # atom -> family
        self._states = np.zeros(1024, dtype=np.int64)  # root atom -> live, frozen or replaced
        self._substitutes = np.zeros(1024, dtype=np.int64)  # replaced root atom -> the label that stands for it
        self._family_parents: list[int] = []
        self._products: dict[tuple[bytes, bytes], Array] = {}  # two dimensions, canonical -> them joined into one

    def fresh(self, size: int) -> Array:
        """`size` labels, each of one new atom, all of one new family."""
        first, self.count = self.count, self.count + size
        if self.count > len(self._parents):
            self._parents, self._families, self._states, self._substitutes = (
                np.concatenate([array, np.zeros(max(size, len(array)), dtype=array.dtype)])
                for array in (self._parents, self._families, self._states, self._substitutes)
            )
        atoms = np.arange(first, self.count)
        self._parents[first : self.count] = atoms
        self._families[first : self.count] = len(self._family_parents)
        self._family_parents.append(len(self._family_parents))
        return 2 * atoms + 1

    def atoms(self, label: int) -> Atoms:
        """What a label stands for now: roots that nothing has replaced. Empty: fixed."""
        return frozenset(self.owners(np.array([label]))[0].tolist())

    def owners(self, labels: Array) -> Pairs:
        """(atoms, positions), of equal length: every atom that every index (size,) needs, by position, then by atom."""
        return self._spelled(self.canonical(labels))

    def owners_of(self, arrays: Sequence[Array]) -> list[Pairs]:
        """The same for several arrays at once."""
        atoms, rows = self.owners(np.concatenate([np.zeros(0, dtype=np.int64), *arrays]))
        starts = np.cumsum([0, *(len(array) for array in arrays[:-1])])
        cuts = np.searchsorted(rows, starts[1:])
        parts = zip(np.split(atoms, cuts), np.split(rows, cuts), starts.tolist(), strict=True)
        return [(mine, positions - start) for mine, positions, start in parts][: len(arrays)]

    def family(self, atom: int) -> int:
        """The number of an atom's family."""
        return int(self.families(np.array([atom]))[0])

    def families(self, atoms: Array) -> Array:
        """The number of each atom's family."""
        distinct, inverse = np.unique(self._families[atoms], return_inverse=True)
        roots = np.array([_root(self._family_parents, family) for family in distinct.tolist()], dtype=np.int64)
        return roots[inverse]

    def canonical(self, labels: Array) -> Array:
        """The same array with equal numbers exactly where the labels stand for the same atoms."""
        odd = labels & 1 == 1
        if odd.all():
            atoms = self._roots(labels >> 1)
            if not self._states[atoms].any():
                return 2 * atoms + 1
        atoms = self._roots(labels[odd] >> 1)
        replaced = self._states[atoms] == _REPLACED
        result = labels.copy()
        result[odd] = np.where(self._states[atoms] == _FROZEN, 0, 2 * atoms + 1)
        result[np.flatnonzero(odd)[replaced]] = self._substitutes[atoms[replaced]]
        other = ~odd & (labels != 0)
        other[odd] = replaced
        if other.any():
            distinct, inverse = np.unique(result[other], return_inverse=True)
            result[other] = self._resolved(distinct)[inverse]
            self._substitutes[atoms[replaced]] = result[odd][replaced]  # the next time there is less to resolve
        return result

    def freeze(self, labels: Array) -> bool:
        """Every index of the array lives always. -> whether that is news."""
        return self.freeze_atoms(self.owners(labels)[0])

    def freeze_atoms(self, atoms: Collection[int] | Array) -> bool:
        """The same for atoms that nothing has replaced."""
        self._states[np.asarray(atoms, dtype=np.int64)] = _FROZEN
        return len(atoms) > 0

    def unite(self, a: Array, b: Array) -> bool:
        """Index i of one dimension is index i of the other, both (size,); what meets a fixed index is frozen.
        -> False where the two are split into factors differently, so that atoms had to be thrown together.
        """
        a, b = self._differing(a, b)
        if (a & b & 1).all():
            self._link_all(a >> 1, b >> 1)
            return True
        if self._follow(b, a) or self._follow(a, b):
            return True
        if ((a | b) & 1 == 0).any():
            self._align(a, b)
        kept = True
        while len((pair := self._differing(a, b))[0]):
            kept &= self._equate(*pair)
        return kept

    def merge(self, parts: Sequence[tuple[Array | None, int]]) -> Array | None:
        """Dimensions (labels, size) joined into one, row-major: an index lives where the index of every part does."""
        whole: tuple[Array | None, int] = (None, 1)
        return functools.reduce(self._product, parts, whole)[0]

    def split(self, labels: Array, sizes: Sequence[int]) -> Dims:
        """One dimension split into several, row-major. Where it isn't a product already, it becomes one of fresh factors."""
        if len(sizes) == 1:
            return (labels,)
        rest = int(np.prod(sizes[1:]))
        rows, columns = self._factors(self.canonical(labels).reshape(sizes[0], rest))
        others: Dims = (None,) * (len(sizes) - 1) if columns is None else self.split(columns, sizes[1:])
        return (rows, *others)

    def _product(self, a: tuple[Array | None, int], b: tuple[Array | None, int]) -> tuple[Array | None, int]:
        (left, n), (right, m) = a, b
        if left is None:
            return (None if right is None else np.tile(right, n)), n * m
        if right is None:
            return np.repeat(left, m), n * m
        left, right = self.canonical(left), self.canonical(right)
        key = left.tobytes(), right.tobytes()
        if key not in self._products:
            (atoms, i), (others, j) = self._spelled(left), self._spelled(right)
            of_left = _keys((i[:, None] * m + np.arange(m)).ravel(), np.repeat(atoms, m))
            of_right = _keys((np.arange(n)[:, None] * m + j).ravel(), np.tile(others, n))
            self._products[key] = self._labels(np.concatenate([of_left, of_right]), n * m)
        return self._products[key], n * m

    def _factors(self, grid: Array) -> tuple[Array | None, Array | None]:
        """(n, m) canonical labels -> labels of the rows and of the columns, such that grid[i, j] = rows[i] and columns[j]."""
        if not grid.any():
            return None, None
        if (grid == grid[:, :1]).all():
            return grid[:, 0], None
        if (grid == grid[:1]).all():
            return None, grid[0]
        n, m = grid.shape
        atoms, cells = self._spelled(grid.reshape(-1))
        rows, in_row = _common(_keys(cells // m, atoms), m)
        columns, in_column = _common(_keys(cells % m, atoms), n)
        if (in_row | in_column).all():
            return self._labels(rows, n), self._labels(columns, m)
        outer, inner = (self._enlarged(keys, size) for keys, size in ((rows, n), (columns, m)))
        joined = self.merge([(outer, n), (inner, m)])
        if joined is not None:
            self.unite(grid.reshape(-1), joined)
        return outer, inner

    def _enlarged(self, keys: Array, size: int) -> Array:
        """Labels of `size` sets, each with a fresh atom besides."""
        return self._labels(np.concatenate([keys, _keys(np.arange(size), self.fresh(size) // 2)]), size)

    def _differing(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Canonical labels of the indices at which two dimensions differ; what meets a fixed index is frozen."""
        while True:
            a, b = self.canonical(a), self.canonical(b)
            differ = a != b
            a, b = a[differ], b[differ]
            fixed = (a == 0) | (b == 0)
            if not fixed.any():
                return a, b
            self.freeze((a + b)[fixed])

    def _follow(self, labels: Array, leading: Array) -> bool:
        """Where `labels` are single atoms that stand nowhere else in the two dimensions, as those of a vector that goes with
        channels do, they become what stands on the other side. -> whether it was so. Both (size,), canonical.
        """
        atoms, single = labels >> 1, leading & 1 == 1
        if not (labels & 1).all() or len(np.unique(atoms)) < len(atoms) or np.isin(atoms, self._spelled(leading)[0]).any():
            return False
        if single.any():
            self._link_all(leading[single] >> 1, atoms[single])
        self._substitutes[atoms[~single]] = leading[~single]
        self._states[atoms[~single]] = _REPLACED
        return True

    def _align(self, a: Array, b: Array) -> None:
        """Two products of the same form, {h, d} and {g, e}: an atom is united with the one that stands in the same positions."""
        where = {positions: atom for atom, positions in self._positions(b)}
        pairs = [(atom, where.pop(positions)) for atom, positions in self._positions(a) if positions in where]
        left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        self._link_all(left, right)

    def _positions(self, labels: Array) -> list[tuple[int, bytes]]:
        """Each atom, and the positions at which it stands."""
        atoms, rows = self._spelled(labels)
        order = np.argsort(atoms, kind="stable")
        distinct, first = np.unique(atoms[order], return_index=True)
        parts = np.split(rows[order], first[1:])
        return [(atom, part.tobytes()) for atom, part in zip(distinct.tolist(), parts, strict=True)]

    def _equate(self, a: Array, b: Array) -> bool:
        """A step towards equality, of the indices up to the first of which neither side has a single atom left that the other
        side lacks. -> False where that is the very first, so that atoms were thrown together.
        """
        mine, theirs = (_keys(rows, atoms) for atoms, rows in (self._spelled(a), self._spelled(b)))
        left, right = np.setdiff1d(mine, theirs, assume_unique=True), np.setdiff1d(theirs, mine, assume_unique=True)
        counts = np.stack([np.bincount(keys >> _BITS, minlength=len(a)) for keys in (left, right)])  # (2, indices)
        hard = counts.min(0) > 1
        until = int(np.argmax(hard)) if hard.any() else len(a)
        left, right = (keys[keys >> _BITS < max(until, 1)] for keys in (left, right))
        if until == 0:
            together = _atoms(np.concatenate([left, right]))
            self._link_all(np.full_like(together, together[0]), together)
        else:
            self._ease(left, right, counts[:, :until])
        return until > 0

    def _ease(self, left: Array, right: Array, counts: Array) -> None:
        """Does one of these for all indices: one atom on either side become one; one is replaced by several; what is left over
        on one side is frozen. left, right: keys of what either side has and the other lacks; counts (2, indices): how many.
        """
        fewest, most = counts.min(0), counts.max(0)
        if ((fewest == 1) & (most == 1)).any():
            self._link_all(*(_atoms(keys[most[keys >> _BITS] * fewest[keys >> _BITS] == 1]) for keys in (left, right)))
        elif (fewest == 1).any():
            self._replace(left, right, counts)
        else:
            self.freeze_atoms(_atoms(np.concatenate([left, right])))

    def _replace(self, left: Array, right: Array, counts: Array) -> None:
        """Atoms that stand alone on one side are replaced by what stands on the other; none by what is replaced itself."""
        alone = np.where(counts[0] == 1, 0, np.where(counts[1] == 1, 1, -1))  # (indices,): the side with one atom
        single = np.concatenate([keys[alone[keys >> _BITS] == side] for side, keys in enumerate((left, right))])
        several = np.sort(np.concatenate([keys[alone[keys >> _BITS] == 1 - side] for side, keys in enumerate((left, right))]))
        single = np.sort(single)
        _, first = np.unique(_atoms(single), return_index=True)
        chosen = np.sort(first)
        free = chosen[~np.isin(_atoms(single[chosen]), _atoms(several))]
        chosen = free if len(free) else chosen[:1]
        place = np.full(counts.shape[1], -1)
        place[single[chosen] >> _BITS] = np.arange(len(chosen))
        ours = several[place[several >> _BITS] >= 0]
        atoms = _atoms(single[chosen])
        self._substitutes[atoms] = self._labels(_keys(place[ours >> _BITS], _atoms(ours)), len(chosen))
        self._states[atoms] = _REPLACED

    def _link_all(self, a: Array, b: Array) -> None:
        """Pairs of live roots (size,): each pair becomes one, under the smallest number."""
        for pair in _pairs(self._families[a], self._families[b]):
            first, second = (_root(self._family_parents, family) for family in pair)
            self._family_parents[max(first, second)] = min(first, second)
        while len(a):
            low, high = np.minimum(a, b), np.maximum(a, b)
            if (high[1:] > high[:-1]).all():  # each stands once
                self._parents[high] = low
                break
            np.minimum.at(self._parents, high, low)
            a, b = self._roots(a), self._roots(b)
            differ = a != b
            a, b = a[differ], b[differ]

    def _roots(self, atoms: Array) -> Array:
        """Find for an array, shortening the paths."""
        found = self._parents[atoms]
        if ((above := self._parents[found]) == found).all():
            return found
        while (above != found).any():
            found, above = above, self._parents[above]
        self._parents[atoms] = found
        return found

    def _resolved(self, labels: Array) -> Array:
        """Canonical labels, where those given are of several atoms, or of a replaced one."""
        atoms, rows = self._spelled(labels)
        roots = self._roots(atoms)
        if not (self._states[roots].any() or (roots != atoms).any()):
            return labels
        while (replaced := self._states[roots] == _REPLACED).any():
            inner, which = self._spelled(self._substitutes[roots[replaced]])
            rows = np.concatenate([rows[~replaced], rows[replaced][which]])
            roots = np.concatenate([roots[~replaced], self._roots(inner)])
        live = self._states[roots] == _LIVE
        return self._labels(_keys(rows[live], roots[live]), len(labels))

    def _spelled(self, labels: Array) -> Pairs:
        """The atoms that labels were made of, by position, then by atom."""
        single = labels & 1 == 1
        if single.all():
            return labels >> 1, np.arange(len(labels))
        atoms, rows = self._sets.pairs(np.where(single, 0, labels >> 1))
        if not single.any():
            return atoms, rows
        rows = np.concatenate([np.flatnonzero(single), rows])
        order = np.argsort(rows, kind="stable")
        return np.concatenate([labels[single] >> 1, atoms])[order], rows[order]

    def _labels(self, keys: Array, size: int) -> Array:
        """Labels of `size` sets of live roots; keys: a pair of set and atom each, in any order, also several times."""
        keys = np.sort(keys)
        keys = keys[np.diff(keys, prepend=-1) > 0]
        rows, atoms = keys >> _BITS, _atoms(keys)
        lengths = np.bincount(rows, minlength=size)
        several = lengths > 1
        result = np.zeros(size, dtype=np.int64)
        result[lengths == 1] = 2 * atoms[~several[rows]] + 1
        result[several] = 2 * self._sets.numbers(atoms[several[rows]], lengths[several])
        return result


def _keys(rows: Array, atoms: Array) -> Array:
    """Pairs of the number of a set and an atom in it, each as one number, in the order of the sets."""
    return rows << _BITS | atoms


def _pairs(a: Array, b: Array) -> set[tuple[int, int]]:
    """Different pairs of the entries of two arrays (size,); mostly there is one."""
    if len(a) and (a == a[0]).all() and (b == b[0]).all():
        return {(int(a[0]), int(b[0]))}
    return set(zip(a.tolist(), b.tolist(), strict=True))


def _atoms(keys: Array) -> Array:
    return keys & (1 << _BITS) - 1


def _common(keys: Array, length: int) -> tuple[Array, NDArray[np.bool_]]:
    """Keys of (line, atom), one for each of the `length` cells of a line in which an atom occurs: those of atoms that occur in
    all cells of the line, and for every key given whether it is one of them.
    """
    distinct, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    everywhere = counts == length
    return distinct[everywhere], everywhere[inverse]


def _root(parents: list[int], item: int) -> int:
    """Find, halving the path."""
    while parents[item] != item:
        parents[item] = parents[parents[item]]
        item = parents[item]
    return item
