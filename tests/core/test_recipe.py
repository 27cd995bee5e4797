"""A recipe is data: it says what is wanted, and comes back from text equal."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from paredown.core.errors import RecipeError
from paredown.core.knowledge import AttentionTransfer, Hint
from paredown.core.recipe import Recipe
from paredown.core.steps import ChannelAttention, Distill, Prune, Quantize, Schedule, Slimming, Training
from tests.core.strategies import recipes

FULL = Recipe((Prune(ratio=0.5), Distill(), Prune(ratio=0.2), Quantize(), Distill()))


@given(recipes)
@settings(max_examples=60, deadline=None)
def test_recipe_round_trips_through_json_and_yaml(recipe: Recipe) -> None:
    assert Recipe.parse(recipe.to_json()) == recipe
    assert Recipe.parse(recipe.to_yaml()) == recipe


@given(recipes)
@settings(max_examples=40, deadline=None)
def test_stages_put_together_are_the_recipe(recipe: Recipe) -> None:
    assert sum(recipe.stages(), Recipe()) == recipe
    assert all(stage.steps for stage in recipe.stages())


@given(recipes)
@settings(max_examples=40, deadline=None)
def test_a_stage_holds_at_most_one_structural_step(recipe: Recipe) -> None:
    for stage in recipe.stages():
        assert sum(not isinstance(step, Distill) for step in stage.steps) <= 1


def test_a_stage_is_a_structural_step_with_its_recovery() -> None:
    assert [str(stage) for stage in FULL.stages()] == ["prune + distill", "prune", "quantize + distill"]


def test_text_names_the_steps_in_order() -> None:
    assert str(FULL) == "prune + distill + prune + quantize + distill"
    assert str(Recipe()) == "baseline"


def test_fields_at_their_default_are_left_out() -> None:
    assert Recipe((Prune(ratio=0.5), Quantize())).to_dict() == {"steps": [{"step": "prune", "ratio": 0.5}, {"step": "quantize"}]}


def test_effort_is_written_as_people_write_it() -> None:
    recipe = Recipe.parse("steps: [{step: distill, training: {effort: 5 min, learning_rate: 0.1}}]")
    step = recipe.steps[0]
    assert isinstance(step, Distill)
    assert step.training == Training(effort=step.training.effort, learning_rate=0.1)
    assert json.loads(recipe.to_json())["steps"][0]["training"]["effort"] == "300 seconds"


def test_yaml_that_would_build_objects_is_refused() -> None:
    with pytest.raises(RecipeError, match="valid YAML"):
        Recipe.parse("steps: !!python/object/apply:os.system ['true']")


@pytest.mark.parametrize("text", ["steps: [{step: prune, ratio: 0.3, ratio: 0.5}]", '{"steps": [], "steps": []}'])
def test_a_field_that_stands_twice_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"each field once, got '(ratio|steps)' twice; remove one"):
        Recipe.parse(text)


def test_a_merged_mapping_may_be_overridden() -> None:
    recipe = Recipe.parse("steps: [&p {step: sparsify, ratio: 0.5}, {<<: *p, ratio: 0.3}]")
    assert [step.ratio for step in recipe.steps] == [0.5, 0.3]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("steps: [{step: prune, ratio: 0.5, sparsity: 1}]", "sparsity"),
        ("steps: [{step: quantize, observers: minmax}]", "observers"),
        ("steps: [{step: distill, training: {epochs: 3}}]", "training.epochs"),
    ],
)
def test_unknown_field_is_named_and_the_known_ones_listed(text: str, field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    assert field in caught.value.rule
    assert caught.value.remedy.startswith("its fields are")


def test_a_function_of_the_users_is_named_in_the_file_and_cannot_be_done_from_it() -> None:
    def mine(model: object, task: object, groups: object) -> list[object]:
        return []

    text = Recipe((Prune(ratio=0.5, importance=mine),)).to_yaml()
    read = Recipe.parse(text)
    step = read.steps[0]
    assert "portable: false" in text and read.to_yaml() == text
    assert isinstance(step, Prune) and callable(step.importance)
    with pytest.raises(RecipeError, match="can't be done from a file"):
        step.importance(None, None, None)


def test_a_learned_importance_is_told_apart_by_its_kind() -> None:
    recipe = Recipe((Prune(ratio=0.5, importance=Slimming()), Prune(ratio=0.5, importance=ChannelAttention())))
    assert recipe.to_dict()["steps"][0]["importance"] == {"kind": "slimming"}
    assert Recipe.parse(recipe.to_yaml()) == recipe


def test_a_cubic_schedule_takes_most_at_first() -> None:
    assert Schedule(steps=4).fractions() == (0.25, 0.5, 0.75, 1.0)
    assert Schedule(steps=2, curve="cubic").fractions() == (0.875, 1.0)


def test_feature_losses_are_written_by_kind_and_weight() -> None:
    step = Distill(features=(AttentionTransfer(weight=5.0), Hint()), pairs=(("a", "b.0"),), balance=True)
    data = Recipe((step,)).to_dict()
    assert data["steps"][0]["features"] == [{"kind": "attention_transfer", "weight": 5.0}, {"kind": "hint"}]
    assert Recipe.from_dict(data) == Recipe((step,))


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"features": ("hint",)}, "AttentionTransfer"),
        ({"features": (Hint(), Hint(2.0))}, "give the one its weight"),
        ({"pairs": (("a", "b"),)}, "features="),
        ({"balance": True}, "features="),
        ({"features": (Hint(),), "pairs": ("ab",)}, "layer2"),
        ({"soft": None, "hard_weight": 0}, "leave soft out"),
        ({"soft": "hard"}, "soft_labels"),
    ],
)
def test_losses_that_make_no_sense_are_refused_with_a_remedy(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(RecipeError, match=remedy):
        Distill(**fields)
