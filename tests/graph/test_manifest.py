"""Manifests: composition, JSON, and what is attached to a model."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.core.errors import CheckpointError
from paredown.graph.manifest import Manifest, attach_, manifest_of


def test_composition_is_relative_to_the_original() -> None:
    first = Manifest({"a": {0: (1, 3, 5)}})
    second = Manifest({"a": {0: (0, 2), 1: (4,)}, "b": {0: (7,)}})
    assert first.then(second) == Manifest({"a": {0: (1, 5), 1: (4,)}, "b": {0: (7,)}})


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_composition_selects_what_two_selections_select(data: st.DataObject) -> None:
    whole = list(range(12))
    first = tuple(sorted(data.draw(st.sets(st.sampled_from(whole), min_size=1))))
    second = tuple(sorted(data.draw(st.sets(st.sampled_from(range(len(first))), min_size=1))))
    both = Manifest({"a": {0: first}}).then(Manifest({"a": {0: second}}))
    assert [whole[i] for i in both.kept["a"][0]] == [[whole[i] for i in first][j] for j in second]


def test_what_folding_gates_cost_stays_with_the_cuts_after_it() -> None:
    first, second = Manifest(folds=((0.3, 0.31),)), Manifest({"a": {0: (1,)}}, folds=((0.4, 0.45),))
    assert first.then(second).folds == ((0.3, 0.31), (0.4, 0.45))
    assert first.then(Manifest({"a": {0: (1,)}})).folds == first.folds


def test_it_survives_json() -> None:
    manifest = Manifest({"layer.weight": {0: (0, 2), 1: (1,)}}, folds=((0.25, 0.5),))
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


@pytest.mark.parametrize(
    "data",
    [[], {}, {"kept": []}, {"kept": {"a": [0]}}, {"kept": {"a": {"x": [0]}}}, {"kept": {"a": {"0": []}}},
     {"kept": {}, "folds": [[1.0]]}, {"kept": {}, "folds": [["a", 1.0]]}, {"kept": {}, "folds": [[1.0, float("nan")]]},
     {"kept": {"a": {"0": [2, 1]}}}, {"kept": {"a": {"0": [-1]}}}, {"kept": {"a": {"0": ["1"]}}}, {"kept": {"a": {"0": [True]}}}],
)  # fmt: skip
def test_a_malformed_manifest_is_refused(data: object) -> None:
    with pytest.raises(CheckpointError, match=r"manifest.*save the checkpoint again"):
        Manifest.from_dict(data)


def test_it_stays_with_copies_and_out_of_the_state_dict() -> None:
    model, manifest = nn.Linear(2, 2), Manifest({"weight": {0: (1,)}})
    assert manifest_of(model) is None
    attach_(model, manifest)
    assert manifest_of(copy.deepcopy(model)) == manifest
    assert set(model.state_dict()) == {"weight", "bias"}
