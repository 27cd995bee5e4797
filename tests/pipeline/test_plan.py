"""The planner against worlds in which the costs of a kept fraction are known."""

from collections.abc import Callable, Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.core.budget import Axis
from paredown.core.effort import Effort
from paredown.core.recipe import Recipe
from paredown.core.steps import Distill, Prune, Quantize, Training, Weights
from paredown.pipeline.plan import Costs, Outcome, Planner, Ratios, int8_steps

EFFORT = Training(effort=Effort(3, "epochs"))


World = Callable[[float], tuple[float, float, bool]]  # kept fraction of the MACs -> (latency, size, drop met)


def kept_fraction(recipe: Recipe, world: World) -> float:
    """Of the MACs; for a cut to a latency the one that has it."""
    first = recipe.steps[0]
    if not isinstance(first, Prune):
        return 1.0
    if first.ratio is not None:
        return 1 - first.ratio
    limit = first.limit()
    assert limit is not None and limit.relative and first.precision == "int8"
    goal = limit.value
    return next((kept for kept in (1 - i / 1000 for i in range(1000)) if world(kept)[0] <= goal), 0.001)


def costs_in(world: World) -> Costs:
    """What files of such a world cost."""

    def costs(recipe: Recipe, axes: Collection[Axis]) -> Ratios | None:
        assert not any(isinstance(step, Distill) for step in recipe.steps)
        latency, size, _ = world(kept_fraction(recipe, world))
        found: Ratios = {"latency": latency, "size": size}
        return {axis: ratio for axis, ratio in found.items() if axis in axes}

    return costs


def play(limits: dict[Axis, float], world: World, rounds: int = 4) -> tuple[list[float], Outcome]:
    """Runs a planner in a world. -> kept fractions of the MACs that it asked for, and the last outcome."""
    planner, asked, outcome = Planner(limits, EFFORT, costs_in(world), rounds), [], Outcome({}, False)
    while (recipe := planner.ask()) is not None:
        kept = kept_fraction(recipe, world)
        latency, size, met = world(kept)
        outcome = Outcome({"latency": latency, "size": size}, met)
        asked.append(kept)
        planner.tell(outcome)
    return asked, outcome


def test_tables_are_stored_in_8_bits_where_a_size_is_asked_and_there_are_any() -> None:
    asked: list[tuple[Ratios, bool]] = [({"size": 0.3, "latency": 0.6}, True), ({"size": 0.3}, False), ({"latency": 0.6}, True)]
    found = [{step.weights.embeddings for step in int8_steps(limits, tables=tables)} for limits, tables in asked]
    assert found == [{True}, {False}, {False}]


def test_dynamic_int8_comes_first_where_static_stores_tables_alone_and_misses_the_size() -> None:
    def costs(recipe: Recipe, _: Collection[Axis]) -> Ratios:
        (step,) = recipe.steps
        assert isinstance(step, Quantize) and step.kind == "dynamic"
        return {"size": 0.32}

    planner = Planner({"size": 0.4}, EFFORT, costs, int8=int8_steps({"size": 0.4}, tables=True))
    planner.ask()
    planner.tell(Outcome({"size": 0.55}, drop_met=True))
    second = planner.ask()
    assert second is not None and second.steps == (Quantize(kind="dynamic", weights=Weights(embeddings=True)),)


def test_recoveries_train_as_they_are_told_after_int8_at_a_tenth_of_the_rate() -> None:
    told = Training(effort=Effort(3, "epochs"), learning_rate=0.08, optimizer="adamw")
    planner = Planner({"size": 0.2}, told, costs_in(lambda kept: (1.0, 0.3 * kept, True)))
    planner.ask()
    planner.tell(Outcome({"latency": 1.0, "size": 0.3}, drop_met=True))
    first = planner.ask()
    assert first is not None
    planner.tell(Outcome({"latency": 1.0, "size": 0.19}, drop_met=False))
    second = planner.ask()
    assert second is not None
    trainings = [step.training for recipe in (first, second) for step in recipe.steps if isinstance(step, Distill)]
    assert trainings[:2] == [told, told]
    assert trainings[2] == Training(effort=Effort(1, "epochs"), learning_rate=0.008, optimizer="adamw")


def test_int8_alone_comes_first_and_is_enough_where_it_meets_the_budget() -> None:
    asked, _ = play({"latency": 0.6, "size": 0.4}, lambda kept: (0.55, 0.3, True))
    assert asked == [1.0]


def test_what_size_misses_is_pruned() -> None:
    asked, outcome = play({"size": 0.18}, lambda kept: (0.5, 0.28 * kept, True))
    assert outcome.ratios["size"] <= 0.18
    assert len(asked) == 2 and 0.5 < asked[1] < 0.65


@settings(deadline=None, max_examples=60)
@given(whole=st.floats(0.4, 0.9), fixed=st.floats(0.1, 0.6), goal=st.floats(0.6, 0.95))
def test_a_latency_that_pruning_can_reach_is_reached_by_the_first_cut(whole: float, fixed: float, goal: float) -> None:
    limit = whole * (fixed + (1 - fixed) * goal)  # the latency at kept fraction `goal`
    asked, outcome = play({"latency": limit}, lambda kept: (whole * (fixed + (1 - fixed) * kept), 0.3, True))
    assert outcome.ratios["latency"] <= limit
    assert len(asked) == 2


def test_too_large_a_drop_is_recovered_after_int8_and_then_makes_the_next_proposal_milder() -> None:
    asked, outcome = play({"size": 0.151}, lambda kept: (0.5, 0.2 * kept, kept > 0.74))
    assert asked[2] == asked[1] < asked[3] <= 0.75
    assert outcome.drop_met and outcome.ratios["size"] <= 0.151


def test_drop_and_cost_both_missed_ask_for_a_deeper_cut_with_recovery_after_int8() -> None:
    planner = Planner({"latency": 0.6}, EFFORT, costs_in(lambda kept: (0.687 * kept, 0.3, True)))
    planner.ask()
    planner.tell(Outcome({"latency": 0.687}, drop_met=True))
    second = planner.ask()
    planner.tell(Outcome({"latency": 0.62}, drop_met=False))  # slower than it was before it was trained
    third = planner.ask()
    assert second is not None and third is not None
    assert _latency(third) < _latency(second) < 0.6
    assert [type(step) for step in third.steps] == [Prune, Distill, Quantize, Distill]


def test_a_cut_for_latency_asks_for_what_the_int8_file_is_over() -> None:
    """No cut for the size is needed, or the one that is stays too slow: the goal is a latency, of files in int8."""
    for size in (0.3, 0.5):
        planner = Planner({"latency": 0.6, "size": 0.4}, EFFORT, costs_in(lambda kept, size=size: (0.8, size * kept, True)))
        planner.ask()
        planner.tell(Outcome({"latency": 0.8, "size": size}, drop_met=True))
        assert _latency(planner.ask()) == pytest.approx(0.93 * 0.6, abs=1e-3)


def test_a_file_that_is_fast_enough_but_too_large_is_followed_by_a_cut_of_macs_that_is_both() -> None:
    world: World = lambda kept: (0.7 * kept, 0.6 * kept**2, True)  # noqa: E731 (a line of a table)
    planner = Planner({"latency": 0.6, "size": 0.4}, EFFORT, costs_in(world))
    planner.ask()
    planner.tell(Outcome({"latency": 0.8, "size": 0.6}, drop_met=True))
    planner.ask()
    planner._goal = "latency"
    planner.tell(Outcome({"latency": 0.58, "size": 0.45}, drop_met=True))
    third = planner.ask()
    assert third is not None
    assert isinstance(third.steps[0], Prune) and third.steps[0].ratio is not None
    latency, size, _ = world(kept_fraction(third, world))
    assert latency <= 0.6 and size <= 0.4


def test_a_latency_out_of_reach_of_the_table_is_looked_for_by_macs() -> None:
    planner = Planner({"latency": 0.6}, EFFORT, costs_in(lambda kept: (0.8 * kept, 0.3, True)))
    planner.ask()
    planner.tell(Outcome({"latency": 0.8}, drop_met=True))
    assert _latency(planner.ask()) < 0.6
    planner.tell(Outcome({"latency": 1.0}, drop_met=False, possible=False))
    third = planner.ask()
    assert third is not None and isinstance(third.steps[0], Prune) and third.steps[0].ratio is not None
    assert 0.8 * (1 - third.steps[0].ratio) <= 0.6


def test_where_int8_gains_nothing_pruning_goes_alone() -> None:
    planner = Planner({"size": 0.4}, EFFORT, costs_in(lambda kept: (1.0, 0.9 * kept, True)))
    for _ in ("static", "dynamic"):
        planner.ask()
        planner.tell(Outcome({"size": 1.2}, drop_met=True))
    second = planner.ask()
    assert second is not None
    assert [type(step) for step in second.steps] == [Prune, Distill]


def test_no_cut_is_trained_that_comes_no_nearer_to_the_limits() -> None:
    """As at batch 1, where a small model's time is that of its calls, whatever the widths."""
    planner = Planner({"latency": 0.45}, EFFORT, costs_in(lambda kept: (0.58 if kept < 1 else 0.56, 0.3, True)))
    planner.ask()
    planner.tell(Outcome({"latency": 0.56}, drop_met=True))
    assert _latency(planner.ask()) < 0.45
    planner.tell(Outcome({"latency": 1.0}, drop_met=False, possible=False))
    assert planner.ask() is None


def _latency(recipe: Recipe | None) -> float:
    assert recipe is not None and isinstance(recipe.steps[0], Prune) and recipe.steps[0].latency is not None
    return float(recipe.steps[0].latency.removesuffix("x"))


def test_the_planner_never_asks_more_than_its_rounds() -> None:
    asked, _ = play({"latency": 0.1}, lambda kept: (0.9, 0.3, True), rounds=4)
    assert len(asked) <= 4


def test_int8_that_costs_too_much_accuracy_is_followed_by_distillation() -> None:
    planner = Planner({"size": 0.4}, EFFORT, costs_in(lambda kept: (0.5, 0.3 * kept, True)))
    planner.ask()
    planner.tell(Outcome({"size": 0.3}, drop_met=False))
    second = planner.ask()
    assert second is not None
    assert [type(step) for step in second.steps] == [Quantize, Distill]


def test_a_proposal_that_can_not_be_carried_out_is_followed_by_a_milder_one() -> None:
    world: World = lambda kept: (0.5, 0.3 * kept, True)  # noqa: E731 (a line of a table)
    planner = Planner({"size": 0.05}, EFFORT, costs_in(world))
    planner.ask()
    planner.tell(Outcome({"size": 0.3}, drop_met=True))
    second = planner.ask()
    assert second is not None
    planner.tell(Outcome({"size": 1.0}, drop_met=False, possible=False))
    third = planner.ask()
    assert third is not None and kept_fraction(third, world) > kept_fraction(second, world)


def test_pruning_that_was_rolled_back_is_followed_by_the_milder_cut_that_comes_nearer() -> None:
    world: World = lambda kept: (0.5, 0.28 * kept, True)  # noqa: E731 (a line of a table)
    planner = Planner({"size": 0.18}, EFFORT, costs_in(world))
    planner.ask()
    planner.tell(Outcome({"size": 0.28}, drop_met=True))
    second = planner.ask()
    assert second is not None
    planner.tell(Outcome({"size": 0.5}, drop_met=False, complete=False))
    third = planner.ask()
    assert third is not None and kept_fraction(second, world) < kept_fraction(third, world) < 1


@pytest.mark.parametrize("limits", [{"latency": 0.3}, {"size": 0.1}, {"latency": 0.4, "size": 0.2}])
def test_pruning_is_always_recovered_and_quantized(limits: dict[Axis, float]) -> None:
    planner = Planner(limits, EFFORT, costs_in(lambda kept: (0.6 * kept, 0.3 * kept, True)))
    planner.ask()
    planner.tell(Outcome({"latency": 0.6, "size": 0.3}, drop_met=True))
    second = planner.ask()
    assert second is not None
    assert [type(step) for step in second.steps] == [Prune, Distill, Quantize]


def test_model_without_anything_for_int8_is_pruned_alone() -> None:
    planner = Planner({"size": 0.5}, EFFORT, costs_in(lambda kept: (1.0, kept, True)))
    assert planner.ask() == Recipe((Quantize(),))
    planner.tell_unquantizable()
    assert planner.ask() == Recipe((Quantize(kind="dynamic"),))
    planner.tell_unquantizable()
    proposal = planner.ask()
    assert proposal is not None and [type(step) for step in proposal.steps] == [Prune, Distill]
    planner.tell(Outcome({"size": 0.49}, drop_met=True))
    assert planner.ask() is None


def test_where_static_int8_gains_nothing_dynamic_int8_takes_its_place() -> None:
    """A recurrent model, say, whose layers have no static int8."""
    planner = Planner({"size": 0.2}, EFFORT, costs_in(lambda kept: (1.0, 0.27 * kept, True)))
    assert planner.ask() == Recipe((Quantize(),))
    planner.tell(Outcome({"size": 1.01}, drop_met=True))
    assert planner.ask() == Recipe((Quantize(kind="dynamic"),))
    planner.tell(Outcome({"size": 0.27}, drop_met=True))
    proposal = planner.ask()
    assert proposal is not None and [type(step) for step in proposal.steps] == [Prune, Distill, Quantize]
    assert proposal.steps[-1] == Quantize(kind="dynamic")
    planner.tell(Outcome({"size": 0.19}, drop_met=False))
    milder = planner.ask()
    assert milder is None or isinstance(milder.steps[-1], Quantize), "dynamic int8 isn't trained"
