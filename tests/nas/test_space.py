"""Spaces: sampling, moves, encoding, canonical forms and JSON hold for any space that can be written."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.core.errors import SearchSpaceError
from paredown.nas import cell201
from paredown.nas.composite import per_layer, product, split
from paredown.nas.dimensions import ActiveIf, AtMost, Choice, Forbid, Int, Ordinal
from paredown.nas.space import Space

NAMES = ("a", "b", "c", "d")


def dimension(name: str) -> st.SearchStrategy[Choice | Ordinal | Int]:
    words = st.lists(st.text("xyz", min_size=1), min_size=1, max_size=4, unique=True).map(tuple)
    numbers = st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True).map(sorted).map(tuple)
    return st.one_of(
        words.map(lambda options: Choice(name, options)),
        numbers.map(lambda options: Ordinal(name, options)),
        st.tuples(st.integers(-3, 3), st.integers(0, 6), st.integers(1, 3)).map(lambda t: Int(name, t[0], t[0] + t[1], t[2])),
    )


spaces = st.integers(1, 4).flatmap(lambda n: st.tuples(*map(dimension, NAMES[:n]))).map(Space)


@settings(deadline=None, max_examples=40)
@given(spaces, st.integers(0, 2**32 - 1))
def test_every_move_stays_inside_the_space(space: Space, seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = space.sample(random), space.sample(random)
    moved = [space.mutate(one, random), space.crossover(one, other, random), *space.neighbors(one), space.canonicalize(one)]
    for architecture in moved:
        assert space.architecture(space.values(architecture)) == architecture
    assert all(sum(a != b for a, b in zip(one, near, strict=True)) == 1 for near in space.neighbors(one))
    assert space.mutate(one, random) != one or space.size == 1


@settings(deadline=None, max_examples=40)
@given(spaces)
def test_json_gives_the_same_space_back(space: Space) -> None:
    assert Space.from_json(space.to_json()) == space


@settings(deadline=None, max_examples=25)
@given(spaces)
def test_encoding_tells_architectures_apart_and_size_counts_them(space: Space) -> None:
    everything = list(space.enumerate())
    assert len(everything) == space.size
    assert len(np.unique(space.encode(everything), axis=0)) == space.size


def constrained() -> Space:
    return Space(
        (Choice("operator", ("conv", "pool")), Ordinal("width", (16, 32, 64)), Int("depth", 1, 3), Int("kernel", 3, 7, step=2)),
        (
            Forbid({"operator": ("pool",), "width": (64,)}),
            AtMost({"width": 1.0, "depth": 16.0}, 96.0),
            ActiveIf("kernel", "operator", ("conv",)),
        ),
    )


def test_constraints_hold_for_samples_and_moves() -> None:
    space, random = constrained(), np.random.default_rng(0)
    for _ in range(200):
        architecture = space.sample(random)
        for each in (architecture, space.mutate(architecture, random), *space.neighbors(architecture)):
            values = space.values(each)
            assert not (values["operator"] == "pool" and values["width"] == 64)
            assert int(values["width"]) + 16 * int(values["depth"]) <= 96


def test_an_inactive_dimension_makes_no_other_architecture() -> None:
    space = constrained()
    pools = [space.architecture({"operator": "pool", "width": 16, "depth": 1, "kernel": k}) for k in (3, 5, 7)]
    convolutions = [space.architecture({"operator": "conv", "width": 16, "depth": 1, "kernel": k}) for k in (3, 5, 7)]
    assert len({space.canonicalize(each) for each in pools}) == 1
    assert len({space.canonicalize(each) for each in convolutions}) == 3


def test_constraints_go_through_json() -> None:
    assert Space.from_json(constrained().to_json()) == constrained()


def test_a_product_keeps_constraints_symmetries_and_parts() -> None:
    joint = product(cell=cell201.space(), net=constrained(), bits=per_layer(("stem", "body"), (4, 8)))
    architecture = joint.sample(np.random.default_rng(1))
    parts = split(joint.values(architecture))
    assert set(parts) == {"cell", "net", "bits"}
    assert set(parts["bits"]) == {"stem", "body"}
    assert constrained().allows(constrained().architecture(parts["net"]))
    skips = "|skip_connect~0|+|{}~0|{}~1|+|none~0|none~1|nor_conv_3x3~2|"
    twins = [cell201.from_string(skips.format(*ops)) for ops in (("skip_connect", "none"), ("none", "skip_connect"))]
    keys = [
        joint.canonicalize(
            joint.architecture({**joint.values(architecture), **{f"cell.{name}": value for name, value in cell.items()}})
        )
        for cell in twins
    ]
    assert keys[0] == keys[1]
    assert Space.from_json(joint.to_json()) == joint


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: Space(()), "add one"),
        (lambda: Space((Choice("a", ("x",)), Choice("a", ("y",)))), "rename"),
        (lambda: Space((Choice("a", ("x", "x")),)), "list each once"),
        (lambda: Space((Choice("a", ("x",)),), (Forbid({"b": ("x",)}),)), "one of"),
        (lambda: Space.from_json('{"dimensions": [{"kind": "wheel"}]}'), "to_json"),
        (lambda: constrained().values((0, 0)), "from 0"),
        (lambda: constrained().architecture({"operator": "conv", "width": 17, "depth": 1, "kernel": 3}), "one of"),
        (lambda: Space((Int("a", 1, 2),), (AtMost({"a": 1.0}, 0.0),)).sample(np.random.default_rng(0)), "loosen"),
        (product, "product("),
        (lambda: cell201.from_string("|conv~0|"), "op is one of"),
    ],
)
def test_bad_input_is_told_with_its_remedy(make: object, remedy: str) -> None:
    with pytest.raises(SearchSpaceError, match="; ") as caught:
        make()  # type: ignore[operator]
    assert remedy in caught.value.remedy


def chain(*, upside_down: bool = False) -> Space:
    """c matters where b is "yes", and b where a is."""
    made = (ActiveIf("b", "a", ("yes",)), ActiveIf("c", "b", ("yes",)))
    return Space(
        (Choice("a", ("yes", "no")), Choice("b", ("yes", "no")), Choice("c", ("x", "y", "z"))),
        made[::-1] if upside_down else made,
    )


@pytest.mark.parametrize("upside_down", [False, True])
def test_what_hangs_on_something_idle_is_idle_too(upside_down: bool) -> None:
    space = chain(upside_down=upside_down)
    classes = {space.canonicalize(architecture) for architecture in space.enumerate()}
    assert len(classes) == 3 + 1 + 1  # a and b yes: c counts; a yes, b no; a no
    assert all(space.canonicalize(each) == each for each in classes)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Forbid({"a": ("poool",)}), "must list options of a"),
        (Forbid({"a": "x"}), "must list options of a"),  # type: ignore[dict-item]  # a text is no tuple
        (Forbid({"b": 2}), "must list options of b"),  # type: ignore[dict-item]  # nor is a number
        (Forbid({}), "at least one dimension"),
        (ActiveIf("b", "a", ("X",)), "must list options of a"),
        (AtMost({"a": 1.0}, 3), "AtMost sums numbers"),
        (AtMost({"b": 1.0}, float("nan")), "AtMost sums numbers"),
    ],
)
def test_a_constraint_that_cannot_do_what_it_says_is_refused(constraint: object, message: str) -> None:
    with pytest.raises(SearchSpaceError, match=message):
        Space((Choice("a", ("x", "y")), Int("b", 0, 3)), (constraint,))  # type: ignore[arg-type]  # one of them


def test_constraints_do_not_go_round_in_a_circle() -> None:
    with pytest.raises(SearchSpaceError, match="circle"):
        Space((Choice("a", ("x", "y")), Choice("b", ("x", "y"))), (ActiveIf("a", "b", ("x",)), ActiveIf("b", "a", ("x",))))


@pytest.mark.parametrize("options", ["abc", (None, "relu"), (("a", "b"), "c"), (float("inf"),), 3])
def test_options_are_plain_values(options: object) -> None:
    with pytest.raises(SearchSpaceError, match="options of a must be a tuple"):
        Choice("a", options)  # type: ignore[arg-type]  # the point


def test_lists_and_numbers_of_numpy_become_plain_options() -> None:
    space = Space((Ordinal("a", [np.int64(1), np.int64(2)]),))  # type: ignore[arg-type]  # the point
    assert space.dimensions[0].options == (1, 2) and Space.from_json(space.to_json()) == space


@pytest.mark.parametrize("wrong", [(0, 4, 0), (0.5, 4, 1), (0, 4, -1)])
def test_a_range_is_of_whole_numbers(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(SearchSpaceError, match="from one whole number to another"):
        Int("a", *wrong)


def test_a_space_whose_constraints_leave_little_is_sampled_all_the_same() -> None:
    space = Space((Int("a", 0, 999), Int("b", 0, 999)), (AtMost({"a": 1.0, "b": 1.0}, 3),))
    random = np.random.default_rng(0)
    drawn = {space.sample(random) for _ in range(100)}
    assert len(drawn) == 10 and all(space.allows(each) for each in drawn)
    assert space.mutate((0, 0), random) in drawn


def test_dimensions_and_constraints_stand_in_tuples() -> None:
    with pytest.raises(SearchSpaceError, match="dimensions must be a tuple of Choice, Ordinal, Int"):
        Space(Choice("a", ("x",)))  # type: ignore[arg-type]  # the point


def test_a_large_space_of_which_sums_leave_next_to_nothing_is_sampled() -> None:
    names = [f"w{i}" for i in range(60)]
    space = Space(tuple(Int(name, 0, 7) for name in names), (AtMost(dict.fromkeys(names, 1.0), 20),))
    random = np.random.default_rng(0)
    drawn = [space.sample(random) for _ in range(5)]
    assert all(space.allows(each) for each in drawn) and len(set(drawn)) == 5
    fewer = Space(tuple(Choice(name, tuple(range(1, 9))) for name in names), (AtMost(dict.fromkeys(names, 1.0), 100),))
    assert all(fewer.allows(fewer.sample(random)) for _ in range(3))
    impossible = Space(tuple(Int(name, 1, 7) for name in names), (AtMost(dict.fromkeys(names, 1.0), 20),))
    with pytest.raises(SearchSpaceError, match="must leave architectures over"):
        impossible.sample(random)


@pytest.mark.parametrize("make", [lambda: Choice("", ("a",)), lambda: Choice(5, ("a",))])  # type: ignore[arg-type]
def test_a_dimension_has_a_name(make: Callable[[], object]) -> None:
    with pytest.raises(SearchSpaceError, match="name must be a text"):
        make()


def test_a_product_is_of_spaces() -> None:
    with pytest.raises(SearchSpaceError, match="a product is of spaces"):
        product(net=3)  # type: ignore[arg-type]
