from paredown.core.budget import Budget
from paredown.pipeline.gate import binding, judge, violations
from tests.pipeline.samples import candidate, ratio

BASELINE = candidate("baseline")
BUDGET = Budget(max_drop=0.01, latency="0.6x", size="0.4x")


def test_stage_stays_when_faster_smaller_and_within_the_drop() -> None:
    verdict = judge(BUDGET, BASELINE, BASELINE, candidate(drop_high=0.009), ratio(0.7), 0.5)
    assert verdict.kept
    assert "latency better" in verdict.reason and "size better" in verdict.reason


def test_stage_goes_when_the_bound_of_its_drop_exceeds_the_budget_though_the_drop_itself_does_not() -> None:
    verdict = judge(BUDGET, BASELINE, BASELINE, candidate(drop=0.005, drop_high=0.0101), ratio(0.7), 0.5)
    assert not verdict.kept
    assert "0.0101" in verdict.reason and "0.01" in verdict.reason


def test_stage_goes_when_a_named_axis_got_worse_though_another_got_better() -> None:
    verdict = judge(BUDGET, BASELINE, BASELINE, candidate(), ratio(1.3), 0.25)
    assert not verdict.kept
    assert "latency worse" in verdict.reason


def test_an_axis_may_give_back_what_it_has_to_spare_where_the_stage_brings_one_that_was_exceeded() -> None:
    cut = candidate("cut", latency=0.49, size=0.5)
    verdict = judge(BUDGET, BASELINE, cut, candidate(latency=0.58, size=0.3), ratio(1.2), 0.6)
    assert verdict.kept
    assert "latency worse: 1.2x" in verdict.reason and "latency still within the limit" in verdict.reason


def test_what_it_gives_back_must_leave_it_within_the_limit() -> None:
    cut = candidate("cut", latency=0.49, size=0.5)
    assert not judge(BUDGET, BASELINE, cut, candidate(latency=0.595, size=0.3), ratio(1.2), 0.6).kept


def test_no_axis_gives_anything_back_for_one_that_was_within_its_limit_already() -> None:
    cut = candidate("cut", latency=0.4, size=0.35)
    assert not judge(BUDGET, BASELINE, cut, candidate(latency=0.5, size=0.2), ratio(1.2), 0.6).kept


def test_latency_that_may_be_noise_counts_as_neither() -> None:
    verdict = judge(BUDGET, BASELINE, BASELINE, candidate(), ratio(0.97, 0.93, 1.01), 1.0)
    assert not verdict.kept
    assert "nothing that the budget names got better" in verdict.reason


def test_an_axis_that_the_budget_does_not_name_is_ignored() -> None:
    assert judge(Budget(size="0.5x"), BASELINE, BASELINE, candidate(), ratio(1.3), 0.25).kept


def test_relative_max_drop_is_a_share_of_the_baseline() -> None:
    budget = Budget(max_drop="1%", size="0.5x")  # 0.9 top-1: 0.009
    assert judge(budget, BASELINE, BASELINE, candidate(drop_high=0.0089), ratio(1.0), 0.5).kept
    assert not judge(budget, BASELINE, BASELINE, candidate(drop_high=0.0091), ratio(1.0), 0.5).kept


def test_a_budget_is_met_only_at_the_bad_end_of_the_interval() -> None:
    assert violations(BUDGET, BASELINE, candidate(latency=0.585, size=0.3)) == {}  # 0.585 * 1.02 < 0.6
    assert list(violations(BUDGET, BASELINE, candidate(latency=0.595, size=0.3))) == ["latency"]


def test_absolute_limits_are_held_against_milliseconds_and_bytes() -> None:
    budget = Budget(latency="5 ms", size="300 B")
    assert violations(budget, BASELINE, candidate(latency=0.48, size=0.3)) == {}
    assert set(violations(budget, BASELINE, candidate(latency=0.5, size=0.301))) == {"latency", "size"}


def test_binding_names_each_broken_limit_with_what_was_asked() -> None:
    (line,) = binding(BUDGET, BASELINE, candidate(latency=0.8, size=0.3))
    assert line.startswith("latency: 0.8x") and line.endswith("asked 0.6x")
