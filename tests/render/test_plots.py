"""Charts: every candidate once, the budget's region where it belongs, intervals in the metric's own direction."""

import dataclasses
from typing import Any

import plotly.graph_objects as go
import pytest

from paredown.core.budget import Budget
from paredown.core.measurement import Measurement
from paredown.core.report import Report, Width
from paredown.render import plots
from tests.render.sample import SAMPLES, sample_report


def trace(figure: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in figure["data"] if item.get("name") == name)


def lower_is_better(report: Report) -> Report:
    """The same run on an error rate: 1 - top-1; drops keep their sign, positive = worse."""

    def turned(measured: Measurement) -> Measurement:
        return dataclasses.replace(measured, value=1 - measured.value, low=1 - measured.high, high=1 - measured.low)  # type: ignore[operator]

    def error(candidate: Any) -> Any:
        return dataclasses.replace(candidate, quality=turned(candidate.quality))

    return dataclasses.replace(
        report, metric="error", baseline=error(report.baseline), best=error(report.best), front=tuple(map(error, report.front)),
        stages=tuple(dataclasses.replace(stage, candidate=error(stage.candidate)) for stage in report.stages),
    )  # fmt: skip


@pytest.mark.parametrize("axis", ["latency", "size"])
def test_figures_are_valid_plotly(axis: str) -> None:
    assert len(go.Figure(plots.tradeoff(sample_report(), axis)).data) == 5  # type: ignore[arg-type]
    assert len(go.Figure(plots.width_bars(sample_report().widths)).data) == 2


def test_every_candidate_is_drawn_once_with_its_role() -> None:
    roles = [(point.role, point.label) for point in plots.points(sample_report())]
    assert roles == [("baseline", ""), ("kept", "1"), ("rolled back", "2"), ("kept", "3"), ("result", "4")]


def test_result_copied_to_another_path_and_timed_again_is_still_one_point() -> None:
    report = sample_report()
    artifact = dataclasses.replace(report.best.artifact, path="model.onnx")
    moved = dataclasses.replace(report, best=dataclasses.replace(report.best, artifact=artifact))
    assert len(plots.points(moved)) == len(plots.points(report))


def test_rolled_back_points_are_hollow() -> None:
    figure = plots.tradeoff(sample_report(), "latency")
    assert trace(figure, "rolled back")["marker"]["symbol"] == "circle-open"
    assert trace(figure, "kept")["marker"]["symbol"] == "circle"


def test_error_bars_are_the_bounds_of_the_drop_and_of_the_ratio() -> None:
    result = trace(plots.tradeoff(sample_report(), "latency"), "result")
    assert result["error_y"]["arrayminus"][0] == pytest.approx(0.0042)
    assert result["error_x"]["array"][0] == pytest.approx(0.012)


def test_lower_is_better_turns_bars_region_and_front_around() -> None:
    report = sample_report()
    skewed = dataclasses.replace(report.best, drop=Measurement("drop", 0.005, n=SAMPLES, low=0.004, high=0.009))
    turned = lower_is_better(dataclasses.replace(report, best=skewed))
    assert plots.higher_is_better(report)
    assert not plots.higher_is_better(turned)
    figure = plots.tradeoff(turned, "latency")
    assert trace(figure, "result")["error_y"]["array"][0] == pytest.approx(0.004)  # worse is up
    region = figure["layout"]["shapes"][0]
    assert region["y0"] == pytest.approx(1 - 0.9176 + 0.01)
    assert region["y1"] < region["y0"]
    assert trace(figure, "front")["y"] == sorted(trace(figure, "front")["y"], reverse=True)


def test_budget_region_ends_at_the_limits() -> None:
    report = sample_report()
    region = plots.tradeoff(report, "latency")["layout"]["shapes"][0]
    assert region["x1"] == pytest.approx(0.6)
    assert region["y0"] == pytest.approx(0.9176 - 0.01)
    absolute = dataclasses.replace(report, budget=Budget(0.01, latency="19.3 ms"))
    assert plots.tradeoff(absolute, "latency")["layout"]["shapes"][0]["x1"] == pytest.approx(0.5)


def test_axis_without_a_limit_has_no_upright_edge() -> None:
    report = dataclasses.replace(sample_report(), budget=Budget(0.01, latency="0.6x"))
    assert len(plots.tradeoff(report, "latency")["layout"]["shapes"]) == 3
    assert len(plots.tradeoff(report, "size")["layout"]["shapes"]) == 2


def test_collapsed_candidate_is_named_rather_than_flattening_the_chart() -> None:
    report = sample_report()
    stages = list(report.stages)
    collapsed = dataclasses.replace(
        stages[1].candidate,
        quality=Measurement("top-1", 0.1, n=SAMPLES, low=0.09, high=0.11),
        drop=Measurement("drop", 0.8176, n=SAMPLES, low=0.81, high=0.82),
    )
    stages[1] = dataclasses.replace(stages[1], candidate=collapsed)
    spoiled = dataclasses.replace(report, stages=tuple(stages))
    assert plots.off_chart(report) == ()
    assert plots.off_chart(spoiled) == ("prune 55 % (10.00 %)",)
    assert plots.tradeoff(spoiled, "size")["layout"]["yaxis"]["range"][0] > 0.85


def test_front_line_never_pays_more_for_less() -> None:
    line = trace(plots.tradeoff(sample_report(), "size"), "front")
    assert line["x"] == sorted(line["x"])
    assert line["y"] == sorted(line["y"])


def test_width_bars_show_output_channels_only_in_order() -> None:
    figure = plots.width_bars([Width("b", "out", 8, 4), Width("b", "in", 3, 3), Width("a", "out", 16, 16)])
    assert figure["data"][0]["y"] == ["b", "a"]
    assert figure["data"][1]["x"] == [4, 16]
    assert figure["data"][0]["text"] == ["8 → 4", "16"]
