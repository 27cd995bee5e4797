"""Labels: which indices of which dimensions live or die together.

Every dimension of every tensor carries None (fixed: a batch, an image's width) or an array (size,) of labels, one per index.
A label stands for a set of *atoms*, all of which must live for the index to live; the empty set is label 0: always lives.
An atom is a class of a union-find, and may be *replaced* by a set of other atoms: by a set of factors where a reshape splits
its dimension, by the empty set where it is frozen. An array of labels never changes: what its labels stand for does.
"""

import functools
from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.int64]
Dims: TypeAlias = tuple[Array | None, ...]
Atoms: TypeAlias = frozenset[int]
_FIXED: Atoms = frozenset()


_LIVE, _FROZEN, _REPLACED = 0, 1, 2


class Labels:
    """The store. Atoms that were made together are of one *family*; uniting two atoms unites their families.

    Nearly all labels are of one atom: atom a has the label 2a + 1, and whole arrays of those are handled at once.
    Even numbers count the sets of several atoms.
    """

    def __init__(self) -> None:
        self._sets: list[Atoms] = [_FIXED]  # half of an even label -> the atoms it was made of
        self._numbers: dict[Atoms, int] = {_FIXED: 0}
        self.count = 0  # of atoms; the three arrays below are longer
        self._parents = np.zeros(1024, dtype=np.int64)  # atom -> atom
        self._families = np.zeros(1024, dtype=np.int64)  # atom -> family
        self._states = np.zeros(1024, dtype=np.int8)  # root atom -> live, frozen or replaced
        self._family_parents: list[int] = []
        self._replaced: dict[int, Atoms] = {}  # replaced root atom -> what stands for it

    def fresh(self, size: int) -> Array:
        """`size` labels, each of one new atom, all of one new family."""
        family, first = len(self._family_parents), self.count
        self._family_parents.append(family)
        self.count += size
        while self.count > len(self._parents):
            self._parents, self._families, self._states = (
                np.concatenate([a, np.zeros_like(a)]) for a in (self._parents, self._families, self._states)
            )
        atoms = np.arange(first, self.count)
        self._parents[atoms], self._families[atoms] = atoms, family
        return 2 * atoms + 1

    def atoms(self, label: int) -> Atoms:
        """What a label stands for now: roots that nothing has replaced. Empty: fixed."""
        return self._resolve([label // 2] if label % 2 else self._sets[label // 2])

    def owners(self, labels: Array) -> tuple[Array, Array]:
        """(atoms, positions), of equal length: every atom that every index (size,) needs, by position, then by atom."""
        labels = self.canonical(labels)
        if not (several := (labels % 2 == 0) & (labels > 0)).any():
            positions = np.flatnonzero(labels)
            return labels[positions] // 2, positions
        sets = {int(label): sorted(self._sets[label // 2]) for label in np.unique(labels[several])}
        each = [sets.get(label) or ([label // 2] if label else []) for label in labels.tolist()]
        atoms = np.array([atom for part in each for atom in part], dtype=np.int64)
        return atoms, np.repeat(np.arange(len(labels)), [len(part) for part in each])

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
        odd = labels % 2 == 1
        if odd.all():
            atoms = self._roots(labels // 2)
            if not self._states[atoms].any():
                return 2 * atoms + 1
        atoms = self._roots(labels[odd] // 2)
        states = self._states[atoms]
        result = labels.copy()
        result[odd] = np.where(states == _FROZEN, 0, 2 * atoms + 1)
        other = ~odd & (labels != 0)
        other[odd] = states == _REPLACED
        if other.any():
            distinct, inverse = np.unique(result[other], return_inverse=True)
            result[other] = np.array([self._label(self.atoms(int(label))) for label in distinct], dtype=np.int64)[inverse]
        return result

    def freeze(self, labels: Array) -> bool:
        """Every index of the array lives always. -> whether that is news."""
        distinct = np.unique(self.canonical(labels))
        single = distinct % 2 == 1
        self._states[distinct[single] // 2] = _FROZEN
        atoms = _FIXED.union(*(self._sets[label // 2] for label in distinct[~single].tolist()))
        return self.freeze_atoms(atoms) or bool(single.any())

    def freeze_atoms(self, atoms: Collection[int]) -> bool:
        """The same for atoms that nothing has replaced."""
        self._states[list(atoms)] = _FROZEN
        return bool(atoms)

    def unite(self, a: Array, b: Array) -> bool:
        """Index i of one dimension is index i of the other, both (size,); what meets a fixed index is frozen.
        -> False where the two are split into factors differently, so that atoms had to be thrown together.
        """
        while True:
            a, b = self.canonical(a), self.canonical(b)
            differ = a != b
            a, b = a[differ], b[differ]
            if (fixed := (a == 0) | (b == 0)).any():
                self.freeze((a + b)[fixed])
            else:
                break
        if (a % 2 == 1).all() and (b % 2 == 1).all():
            self._link_all(a // 2, b // 2)
            return True
        self._align(a, b)
        pairs = dict.fromkeys(zip(a.tolist(), b.tolist(), strict=True))
        kept = [self._unite(x, y) for x, y in pairs]
        return all(kept)

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
        lefts, rights = [self.atoms(int(i)) for i in left], [self.atoms(int(j)) for j in right]
        return np.array([self._label(s | t) for s in lefts for t in rights], dtype=np.int64), n * m

    def _factors(self, grid: Array) -> tuple[Array | None, Array | None]:
        """(n, m) canonical labels -> labels of the rows and of the columns, such that grid[i, j] = rows[i] and columns[j]."""
        if not grid.any():
            return None, None
        if (grid == grid[:, :1]).all():
            return grid[:, 0], None
        if (grid == grid[:1]).all():
            return None, grid[0]
        n, m = grid.shape
        sets = [[self.atoms(int(label)) for label in row] for row in grid]
        rows = [_common(row) for row in sets]
        columns = [_common(column) for column in zip(*sets, strict=True)]
        if any(sets[i][j] != rows[i] | columns[j] for i in range(n) for j in range(m)):
            first, second = self.fresh(n), self.fresh(m)
            rows = [s | self.atoms(int(label)) for s, label in zip(rows, first, strict=True)]
            columns = [s | self.atoms(int(label)) for s, label in zip(columns, second, strict=True)]
        outer, inner = (np.array([self._label(s) for s in part], dtype=np.int64) for part in (rows, columns))
        joined = self.merge([(outer, n), (inner, m)])
        if joined is not None:
            self.unite(grid.reshape(-1), joined)
        return outer, inner

    def _align(self, a: Array, b: Array) -> None:
        """Two products of the same form, {h, d} and {g, e}: an atom is united with the one that stands in the same positions."""
        lefts, rights = [self.atoms(int(x)) for x in a], [self.atoms(int(y)) for y in b]
        if not any(len(s) > 1 and len(t) > 1 for s, t in zip(lefts, rights, strict=True)):
            return
        where = {positions: atom for atom, positions in _positions(rights).items()}
        for atom, positions in _positions(lefts).items():
            other = where.pop(positions, None)
            if other is not None and other != atom:
                self._link(atom, other)

    def _unite(self, x: int, y: int) -> bool:
        """Both sides lose what they share; then a single atom is replaced by what it equals."""
        a, b = self.atoms(x), self.atoms(y)
        left, right = sorted(a - b), sorted(b - a)
        if not left or not right:
            self.freeze_atoms([*left, *right])
            return True
        if len(left) == 1 and len(right) == 1:
            self._link(left[0], right[0])
        elif len(left) == 1:
            self._replace(left[0], frozenset(right))
        elif len(right) == 1:
            self._replace(right[0], frozenset(left))
        else:
            for atom in (*left[1:], *right):
                self._link(left[0], atom)
            return False
        return True

    def _replace(self, atom: int, atoms: Atoms) -> None:
        self._states[atom], self._replaced[atom] = _REPLACED, atoms

    def _link(self, a: int, b: int) -> None:
        self._link_all(np.array([a]), np.array([b]))

    def _link_all(self, a: Array, b: Array) -> None:
        """Pairs of atoms (size,), none of them replaced: each pair becomes one, under the smallest number."""
        families = np.unique(self._families[a] * len(self._family_parents) + self._families[b])
        for pair in families.tolist():
            first, second = (_root(self._family_parents, f) for f in divmod(pair, len(self._family_parents)))
            self._family_parents[max(first, second)] = min(first, second)
        while len(a):
            a, b = self._roots(a), self._roots(b)
            differ = a != b
            a, b = a[differ], b[differ]
            np.minimum.at(self._parents, np.maximum(a, b), np.minimum(a, b))

    def _roots(self, atoms: Array) -> Array:
        """Find for an array, shortening the paths."""
        found = self._parents[atoms]
        while ((above := self._parents[found]) != found).any():
            found = above
        self._parents[atoms] = found
        return found

    def _root(self, atom: int) -> int:
        while (above := int(self._parents[atom])) != atom:
            atom = above
        return atom

    def _resolve(self, atoms: Iterable[int]) -> Atoms:
        result: set[int] = set()
        for atom in atoms:
            root = self._root(atom)
            if self._states[root] == _LIVE:
                result.add(root)
            elif self._states[root] == _REPLACED:
                result |= self._resolve(self._replaced[root])
        return frozenset(result)

    def _label(self, atoms: Atoms) -> int:
        if len(atoms) == 1:
            return 2 * next(iter(atoms)) + 1
        number = self._numbers.setdefault(atoms, len(self._sets))
        if number == len(self._sets):
            self._sets.append(atoms)
        return 2 * number


def _common(sets: Iterable[Atoms]) -> Atoms:
    return functools.reduce(frozenset.__and__, sets)


def _positions(sets: Sequence[Atoms]) -> dict[int, tuple[int, ...]]:
    """atom -> the positions at which it stands."""
    result: dict[int, list[int]] = {}
    for position, atoms in enumerate(sets):
        for atom in sorted(atoms):
            result.setdefault(atom, []).append(position)
    return {atom: tuple(positions) for atom, positions in result.items()}


def _root(parents: list[int], item: int) -> int:
    """Find, halving the path."""
    while parents[item] != item:
        parents[item] = parents[parents[item]]
        item = parents[item]
    return item
