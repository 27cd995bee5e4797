from paredown.core.budget import Budget
from paredown.pipeline.front import choose, pareto
from tests.pipeline.samples import candidate

BASELINE = candidate("baseline")


def test_front_drops_what_another_beats_everywhere() -> None:
    fast, small, beaten = (
        candidate("fast", latency=0.5, size=0.5),
        candidate("small", latency=0.6, size=0.3),
        candidate("beaten", latency=0.7, size=0.6),
    )
    assert [one.name for one in pareto([BASELINE, beaten, small, fast])] == ["fast", "small"]


def test_front_keeps_the_baseline_where_everything_else_costs_accuracy() -> None:
    names = [one.name for one in pareto([BASELINE, candidate("worse", drop=0.01, latency=0.5)])]
    assert names == ["worse", "baseline"]


def test_choice_within_the_budget_is_the_smallest_bound_on_the_drop() -> None:
    budget = Budget(max_drop=0.02, latency="0.8x")
    safe, fast = candidate("safe", drop=0.001, latency=0.7), candidate("fast", drop=0.01, latency=0.4)
    assert choose(budget, BASELINE, [BASELINE, fast, safe]).name == "safe"


def test_choice_outside_the_budget_is_the_nearest_point() -> None:
    budget = Budget(max_drop=0.02, latency="0.2x")
    near, far = candidate("near", latency=0.3), candidate("far", latency=0.6)
    assert choose(budget, BASELINE, [BASELINE, far, near]).name == "near"
