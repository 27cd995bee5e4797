"""Sets of atoms under numbers."""

import numpy as np

from paredown.graph.atom_sets import AtomSets, extended


def made(store: AtomSets, *sets: tuple[int, ...]) -> list[int]:
    atoms = np.array([atom for each in sets for atom in each], dtype=np.int64)
    return store.numbers(atoms, np.array([len(each) for each in sets], dtype=np.int64)).tolist()


def test_equal_sets_have_one_number_and_different_sets_have_two() -> None:
    store = AtomSets()
    first = made(store, (1, 5), (2, 5), (1, 5))
    assert first[0] == first[2] != first[1]
    assert made(store, (2, 5), (1, 5, 7)) == [first[1], max(first) + 1]


def test_the_empty_set_is_number_0() -> None:
    assert made(AtomSets(), (), (3, 4), ()) == [0, 1, 0]


def test_pairs_give_back_what_was_put_in() -> None:
    store = AtomSets()
    sets = [(i, i + 1, *range(2000, 2000 + i % 3)) for i in range(900)]  # more than the first arrays hold
    numbers = np.array(made(store, *sets))
    picked = np.array([700, 3, 3, 899])
    atoms, rows = store.pairs(numbers[picked])
    assert [tuple(atoms[rows == i].tolist()) for i in range(4)] == [sets[i] for i in picked]
    assert (np.diff(rows) >= 0).all()


def test_extended_array_keeps_what_counts_and_appends() -> None:
    array = np.arange(4)
    assert extended(array, 2, np.array([7, 8, 9])).tolist()[:5] == [0, 1, 7, 8, 9]
