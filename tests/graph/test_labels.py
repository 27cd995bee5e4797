"""The store of labels: uniting, freezing, splitting and merging of index arrays."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.graph.labels import Labels

FACTORS = [(2, 6), (3, 4), (4, 3), (6, 2), (2, 3, 2)]  # of 12


def sets(labels: Labels, array: np.ndarray) -> list[frozenset[int]]:
    return [labels.atoms(int(label)) for label in array]


def test_fresh_labels_stand_for_one_atom_each_of_one_family() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(2)
    atoms = [next(iter(s)) for s in sets(labels, a)]
    assert len(set(atoms)) == 3
    assert {labels.family(atom) for atom in atoms} != {labels.family(next(iter(s))) for s in sets(labels, b)}


def test_united_dimensions_stand_for_the_same_atoms() -> None:
    labels = Labels()
    a, b, c = labels.fresh(4), labels.fresh(4), labels.fresh(4)
    assert labels.unite(a, b) and labels.unite(b, c)
    assert sets(labels, a) == sets(labels, c)
    assert len(set(sets(labels, a))) == 4


def test_freezing_one_side_freezes_what_it_was_united_with() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    labels.unite(a, b)
    assert labels.freeze(b[1:2])
    assert [bool(s) for s in sets(labels, a)] == [True, False, True]
    assert not labels.freeze(a[1:2])


def test_split_makes_factors_and_merge_restores_the_rows() -> None:
    labels = Labels()
    channels = labels.fresh(6)
    heads, width = labels.split(channels, [2, 3])
    assert heads is not None and width is not None
    assert len(set(sets(labels, heads))) == 2 and len(set(sets(labels, width))) == 3
    assert sets(labels, channels)[4] == sets(labels, heads)[1] | sets(labels, width)[1]
    merged = labels.merge([(heads, 2), (width, 3)])
    assert merged is not None and sets(labels, merged) == sets(labels, channels)


def test_a_vector_that_goes_with_a_product_stands_for_its_factors() -> None:
    labels = Labels()
    channels, vector, other = labels.fresh(6), labels.fresh(6), labels.fresh(6)
    labels.split(channels, [2, 3])
    labels.unite(vector, other)
    assert labels.unite(vector, channels)
    assert sets(labels, vector) == sets(labels, other) == sets(labels, channels)
    assert labels.freeze(other[:1])
    assert [len(s) for s in sets(labels, channels)] == [0, 1, 1, 1, 2, 2]


def test_splitting_twice_in_the_same_way_makes_no_new_factors() -> None:
    labels = Labels()
    channels = labels.fresh(6)
    first, second = labels.split(channels, [2, 3]), labels.split(channels, [2, 3])
    for a, b in zip(first, second, strict=True):
        assert a is not None and b is not None and sets(labels, a) == sets(labels, b)


def test_flattening_an_image_repeats_its_channels_and_splits_back() -> None:
    labels = Labels()
    channels = labels.fresh(3)
    flat = labels.merge([(channels, 3), (None, 4)])
    assert flat is not None and sets(labels, flat) == [s for s in sets(labels, channels) for _ in range(4)]
    back, image = labels.split(flat, [3, 4])
    assert image is None and back is not None and sets(labels, back) == sets(labels, channels)


def test_two_products_of_one_form_are_united_factor_by_factor() -> None:
    labels = Labels()
    a, b = labels.fresh(6), labels.fresh(6)
    (h, d), (g, e) = labels.split(a, [2, 3]), labels.split(b, [2, 3])
    assert h is not None and g is not None and d is not None and e is not None
    assert labels.unite(a, b)
    assert sets(labels, h) == sets(labels, g) and sets(labels, d) == sets(labels, e)
    assert len(set(sets(labels, h)) | set(sets(labels, d))) == 5


def test_products_of_different_form_lose_their_freedom_and_say_so() -> None:
    labels = Labels()
    a, b = labels.fresh(8), labels.fresh(8)
    labels.split(a, [2, 4])
    labels.split(b, [4, 2])
    assert not labels.unite(a, b)
    assert sets(labels, a) == sets(labels, b)


def test_one_factor_split_again_is_still_one_product() -> None:
    labels = Labels()
    channels = labels.fresh(24)
    labels.split(channels, [4, 6])
    a, b, c = labels.split(channels, [4, 2, 3])
    assert a is not None and b is not None and c is not None
    assert sets(labels, channels)[23] == sets(labels, a)[3] | sets(labels, b)[1] | sets(labels, c)[2]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), st.sets(st.integers(0, 9), max_size=3))
def test_uniting_is_an_equivalence_whatever_the_order(pairs: list[tuple[int, int]], frozen: set[int]) -> None:
    def result(order: list[tuple[int, int]], freeze_first: bool) -> list[frozenset[int]]:
        labels = Labels()
        a = labels.fresh(10)
        steps = [lambda: [labels.freeze(a[[i]]) for i in frozen], lambda: [labels.unite(a[[i]], a[[j]]) for i, j in order]]
        for step in steps if freeze_first else steps[::-1]:
            step()
        return sets(labels, a)

    def same(s: list[frozenset[int]]) -> list[list[bool]]:
        return [[x == y for y in s] for x in s]

    forward, backward = result(pairs, True), result(pairs[::-1], False)
    assert same(forward) == same(backward)
    assert [bool(s) for s in forward] == [bool(s) for s in backward]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([(2, 6), (3, 4), (4, 3), (6, 2), (2, 3, 2)]), max_size=3), st.permutations(range(12)), st.booleans()
)
def test_united_dimensions_are_equal_index_by_index_however_they_were_split(
    splits: list[tuple[int, ...]], order: list[int], freeze: bool
) -> None:
    labels = Labels()
    dimensions = [labels.fresh(12), labels.fresh(12), labels.fresh(12)]
    for dimension, sizes in zip(dimensions, splits, strict=False):
        factors = labels.split(dimension, sizes)
        again = labels.merge(list(zip(factors, sizes, strict=True)))
        assert again is not None and sets(labels, again) == sets(labels, dimension)
    if freeze:
        labels.freeze(dimensions[0][3:4])
    for a, b in ((dimensions[0], dimensions[1]), (dimensions[1], dimensions[2][order])):
        labels.unite(a, b)
        assert sets(labels, a) == sets(labels, b)
    assert sets(labels, dimensions[0]) == sets(labels, dimensions[1])
    assert not freeze or not sets(labels, dimensions[2][order])[3]


def test_owners_of_several_arrays_are_those_of_each() -> None:
    labels = Labels()
    channels, other = labels.fresh(6), labels.fresh(4)
    labels.split(channels, [2, 3])
    labels.freeze(other[:1])
    arrays = [channels[:0], channels, other, channels[4:]]
    for found, array in zip(labels.owners_of(arrays), arrays, strict=True):
        assert all((mine == theirs).all() for mine, theirs in zip(found, labels.owners(array), strict=True))
    assert labels.owners_of([]) == []


def test_an_atom_that_was_replaced_follows_what_becomes_of_its_factors() -> None:
    labels = Labels()
    channels = labels.fresh(6)
    heads, width = labels.split(channels, [2, 3])
    assert heads is not None and width is not None
    labels.canonical(channels)
    labels.freeze(heads)
    assert sets(labels, channels) == [*sets(labels, width), *sets(labels, width)]
    labels.freeze(width)
    assert not labels.canonical(channels).any()
