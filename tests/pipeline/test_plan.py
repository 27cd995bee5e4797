"""The planner against worlds in which the costs of a kept fraction are known."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.core.budget import Axis
from paredown.core.effort import Effort
from paredown.core.recipe import Recipe
from paredown.core.steps import Distill, Prune, Quantize
from paredown.pipeline.plan import Outcome, Planner

EFFORT = Effort(3, "epochs")


def kept_fraction(recipe: Recipe) -> float:
    first = recipe.steps[0]
    return 1 - first.ratio if isinstance(first, Prune) and first.ratio is not None else 1.0


def play(
    limits: dict[Axis, float], world: Callable[[float], tuple[float, float, bool]], rounds: int = 4
) -> tuple[list[float], Outcome]:
    """Runs a planner in a world: kept fraction -> (latency, size, drop met). -> what it asked, and the last outcome."""
    planner, asked, outcome = Planner(limits, EFFORT, rounds), [], Outcome({}, False)
    while (recipe := planner.ask()) is not None:
        kept = kept_fraction(recipe)
        latency, size, met = world(kept)
        outcome = Outcome({"latency": latency, "size": size}, met)
        asked.append(kept)
        planner.tell(outcome)
    return asked, outcome


def test_int8_alone_comes_first_and_is_enough_where_it_meets_the_budget() -> None:
    asked, _ = play({"latency": 0.6, "size": 0.4}, lambda kept: (0.55, 0.3, True))
    assert asked == [1.0]


def test_what_size_misses_is_pruned() -> None:
    asked, outcome = play({"size": 0.18}, lambda kept: (0.5, 0.28 * kept, True))
    assert outcome.ratios["size"] <= 0.18
    assert len(asked) == 2 and 0.5 < asked[1] < 0.65


@settings(deadline=None, max_examples=60)
@given(whole=st.floats(0.4, 0.9), fixed=st.floats(0.1, 0.6), goal=st.floats(0.6, 0.95))
def test_a_latency_that_pruning_can_reach_is_reached_in_four_rounds(whole: float, fixed: float, goal: float) -> None:
    limit = whole * (fixed + (1 - fixed) * goal)  # the latency at kept fraction `goal`
    _, outcome = play({"latency": limit}, lambda kept: (whole * (fixed + (1 - fixed) * kept), 0.3, True))
    assert outcome.ratios["latency"] <= limit


def test_too_large_a_drop_is_recovered_after_int8_and_then_makes_the_next_proposal_milder() -> None:
    asked, outcome = play({"size": 0.15}, lambda kept: (0.5, 0.2 * kept, kept > 0.73))
    assert asked[2] == asked[1] < asked[3]
    assert outcome.drop_met


def test_drop_and_cost_both_missed_ask_for_a_deeper_cut_with_recovery_after_int8() -> None:
    planner = Planner({"latency": 0.6}, EFFORT)
    planner.ask()
    planner.tell(Outcome({"latency": 0.687}, drop_met=True))
    second = planner.ask()
    planner.tell(Outcome({"latency": 0.62}, drop_met=False))
    third = planner.ask()
    assert second is not None and third is not None
    assert kept_fraction(third) < kept_fraction(second)
    assert [type(step) for step in third.steps] == [Prune, Distill, Quantize, Distill]


def test_the_planner_never_asks_more_than_its_rounds() -> None:
    asked, _ = play({"latency": 0.1}, lambda kept: (0.9, 0.3, True), rounds=4)
    assert len(asked) <= 4


def test_int8_that_costs_too_much_accuracy_is_followed_by_distillation() -> None:
    planner = Planner({"size": 0.4}, EFFORT)
    planner.ask()
    planner.tell(Outcome({"size": 0.3}, drop_met=False))
    second = planner.ask()
    assert second is not None
    assert [type(step) for step in second.steps] == [Quantize, Distill]


def test_a_proposal_that_can_not_be_carried_out_is_followed_by_a_milder_one() -> None:
    planner = Planner({"size": 0.05}, EFFORT)
    planner.ask()
    planner.tell(Outcome({"size": 0.3}, drop_met=True))
    second = planner.ask()
    assert second is not None
    planner.tell(Outcome({"size": 1.0}, drop_met=False, possible=False))
    third = planner.ask()
    assert third is not None and kept_fraction(third) > kept_fraction(second)


def test_pruning_that_was_rolled_back_tells_how_much_milder_the_next_proposal_may_be() -> None:
    """The pruned file is 0.5x before int8, which alone leaves 0.28x: more was cut than the size takes."""
    planner = Planner({"size": 0.18}, EFFORT)
    planner.ask()
    planner.tell(Outcome({"size": 0.28}, drop_met=True))
    second = planner.ask()
    assert second is not None
    planner.tell(Outcome({"size": 0.5}, drop_met=False, complete=False))
    third = planner.ask()
    assert third is not None
    line = 1 - (1 - kept_fraction(second)) * (0.28 - 0.18) / (0.28 - 0.5 * 0.28)  # where a line through both is at the limit
    assert kept_fraction(second) < kept_fraction(third) <= line


@pytest.mark.parametrize("limits", [{"latency": 0.3}, {"size": 0.1}, {"latency": 0.4, "size": 0.2}])
def test_pruning_is_always_recovered_and_quantized(limits: dict[Axis, float]) -> None:
    planner = Planner(limits, EFFORT)
    planner.ask()
    planner.tell(Outcome({"latency": 0.6, "size": 0.3}, drop_met=True))
    second = planner.ask()
    assert second is not None
    assert [type(step) for step in second.steps] == [Prune, Distill, Quantize]


def test_model_without_anything_for_int8_is_pruned_alone() -> None:
    planner = Planner({"size": 0.5}, EFFORT)
    assert planner.ask() == Recipe((Quantize(),))
    planner.tell_unquantizable()
    proposal = planner.ask()
    assert proposal is not None and [type(step) for step in proposal.steps] == [Prune, Distill]
    planner.tell(Outcome({"size": 0.49}, drop_met=True))
    assert planner.ask() is None
