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


class Labels:
    """The store. Atoms that were made together are of one *family*; uniting two atoms unites their families."""

    def __init__(self) -> None:
        self._sets: list[Atoms] = [_FIXED]  # label -> the atoms it was made of
        self._numbers: dict[Atoms, int] = {_FIXED: 0}
        self._parents: list[int] = []  # atom -> atom
        self._families: list[int] = []  # atom -> family
        self._family_parents: list[int] = []
        self._replaced: dict[int, Atoms] = {}  # root atom -> what it stands for

    def fresh(self, size: int) -> Array:
        """`size` labels, each of one new atom, all of one new family."""
        family, first = len(self._family_parents), len(self._parents)
        self._family_parents.append(family)
        atoms = range(first, first + size)
        self._parents.extend(atoms)
        self._families.extend([family] * size)
        return np.array([self._label(frozenset({atom})) for atom in atoms], dtype=np.int64)

    def atoms(self, label: int) -> Atoms:
        """What a label stands for now: roots that nothing has replaced. Empty: fixed."""
        return self._resolve(self._sets[label])

    def family(self, atom: int) -> int:
        """The number of an atom's family."""
        return _root(self._family_parents, self._families[_root(self._parents, atom)])

    def canonical(self, labels: Array) -> Array:
        """The same array with equal numbers exactly where the labels stand for the same atoms."""
        distinct, inverse = np.unique(labels, return_inverse=True)
        numbers = [self._label(self.atoms(int(label))) for label in distinct]
        return np.array(numbers, dtype=np.int64)[inverse].reshape(labels.shape)

    def freeze(self, labels: Array) -> bool:
        """Every index of the array lives always. -> whether that is news."""
        return self.freeze_atoms(_FIXED.union(*(self.atoms(int(label)) for label in np.unique(labels))))

    def freeze_atoms(self, atoms: Collection[int]) -> bool:
        """The same for atoms that nothing has replaced."""
        self._replaced.update(dict.fromkeys(atoms, _FIXED))
        return bool(atoms)

    def unite(self, a: Array, b: Array) -> bool:
        """Index i of one dimension is index i of the other, both (size,); what meets a fixed index is frozen.
        -> False where the two are split into factors differently, so that atoms had to be thrown together.
        """
        a, b = self.canonical(a), self.canonical(b)
        differ = a != b
        a, b = a[differ], b[differ]
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
            self._replaced[left[0]] = frozenset(right)
        elif len(right) == 1:
            self._replaced[right[0]] = frozenset(left)
        else:
            for atom in (*left[1:], *right):
                self._link(left[0], atom)
            return False
        return True

    def _link(self, a: int, b: int) -> None:
        a, b = _root(self._parents, a), _root(self._parents, b)
        if a != b:
            first, second = self.family(a), self.family(b)
            self._family_parents[max(first, second)] = min(first, second)
            self._parents[max(a, b)] = min(a, b)

    def _resolve(self, atoms: Iterable[int]) -> Atoms:
        result: set[int] = set()
        for atom in atoms:
            root = _root(self._parents, atom)
            if root in self._replaced:
                result |= self._resolve(self._replaced[root])
            else:
                result.add(root)
        return frozenset(result)

    def _label(self, atoms: Atoms) -> int:
        number = self._numbers.setdefault(atoms, len(self._sets))
        if number == len(self._sets):
            self._sets.append(atoms)
        return number


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
