"""Sets of atoms, each under one number, in flat arrays: thousands of them are read or made at once."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.int64]
Pairs: TypeAlias = tuple[Array, Array]  # (atoms, rows), of equal length: atoms[k] belongs to set rows[k]; by row, then by atom


class AtomSets:
    """The store. A set never changes; number 0 is the empty one."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {b"": 0}  # the atoms of a set, ascending -> its number
        self._atoms = np.zeros(1024, dtype=np.int64)  # of all sets, one after another
        self._ends = np.zeros(1024, dtype=np.int64)  # number of a set -> where its atoms end, and those of the next begin
        self._count, self._length = 1, 0  # of sets and of their atoms; both arrays are longer

    def pairs(self, numbers: Array) -> Pairs:
        """The atoms of the sets with these numbers (size,)."""
        ends = self._ends[numbers]
        lengths = ends - self._ends[np.maximum(numbers - 1, 0)]
        rows = np.repeat(np.arange(len(numbers)), lengths)
        return self._atoms[np.arange(len(rows)) + (ends - np.cumsum(lengths))[rows]], rows

    def numbers(self, atoms: Array, lengths: Array) -> Array:
        """Numbers of the sets that stand one after another in `atoms`, each ascending; lengths (size,) of each."""
        text, ends = atoms.tobytes(), atoms.itemsize * np.cumsum(lengths)
        keys = [text[begin:end] for begin, end in zip((ends - atoms.itemsize * lengths).tolist(), ends.tolist(), strict=True)]
        found = [self._numbers.get(key) for key in keys]
        if None in found:
            self._append([key for key in dict.fromkeys(keys) if key not in self._numbers])
            found = [self._numbers[key] for key in keys]
        return np.array(found, dtype=np.int64)

    def _append(self, keys: list[bytes]) -> None:
        self._numbers.update(zip(keys, range(self._count, self._count + len(keys)), strict=True))
        atoms = np.frombuffer(b"".join(keys), dtype=np.int64)
        ends = self._length + np.cumsum([len(key) for key in keys]) // atoms.itemsize
        self._atoms = extended(self._atoms, self._length, atoms)
        self._ends = extended(self._ends, self._count, ends)
        self._count, self._length = self._count + len(keys), self._length + len(atoms)


def extended(array: Array, count: int, values: Array) -> Array:
    """The array, or a longer one with the same first `count` entries, with `values` written behind them."""
    needed = count + len(values)
    if needed > len(array):
        array = np.concatenate([array[:count], np.zeros(max(needed, 2 * len(array)) - count, dtype=array.dtype)])
    array[count:needed] = values
    return array
