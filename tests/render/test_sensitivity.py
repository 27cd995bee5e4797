"""The section on sensitivity: curves, heat maps and table show the same numbers; no string of the user is more than text."""

import dataclasses
import json

import numpy as np
import plotly.graph_objects as go
import pytest

from paredown.core.report import Report, SensitivityCurve
from paredown.render import sensitivity
from paredown.render.html import render_html
from tests.render.sample import sample_report
from tests.render.test_html import HOSTILE, Page, figures_of
from tests.render.test_terminal import sample_profile

RATIOS = (0.0, 0.3, 0.5, 0.9)


def curve(group: str, steepness: float, size: int = 16) -> SensitivityCurve:
    metric = tuple(round(0.9176 - 0.3 * steepness * r**2, 4) for r in RATIOS)
    loss = tuple(round(0.31 + 2 * steepness * r**2, 4) for r in RATIOS)
    estimate = tuple(round(0.31 + 1.4 * steepness * r**1.5, 4) for r in RATIOS)
    return SensitivityCurve(group, size, RATIOS, metric, loss, estimate)


def curves(count: int = 9) -> tuple[SensitivityCurve, ...]:
    return tuple(curve(f"layer{i // 3 + 1}.{i % 3}.conv1", 1 / (1 + i), 16 * (i // 3 + 1)) for i in range(count))


def report(*given: SensitivityCurve) -> Report:
    return dataclasses.replace(sample_report(), sensitivity=given or curves())


def test_report_and_profile_with_curves_round_trip_through_json() -> None:
    assert Report.from_json(report().to_json()) == report()
    profile = dataclasses.replace(sample_profile(), sensitivity=curves(2))
    assert type(profile).from_json(profile.to_json()) == profile


def test_summary_names_the_most_and_the_least_sensitive_group() -> None:
    text = sensitivity.summary(curves(), "top-1")
    assert text.startswith("The most sensitive group is layer1.0.conv1 (7.50 points worse with 50 % of its 16 channels masked)")
    assert "the least sensitive is layer3.2.conv1 (0.83 points worse" in text


def test_figures_are_valid_plotly_and_name_the_most_sensitive() -> None:
    figure = go.Figure(sensitivity.curve_figure(curves(), "top-1"))
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert len(figure.data) == 9 + 9 + 6 and len(shown) == 6
    assert set(shown) == {c.group for c in curves()[:6]}
    assert len(go.Figure(sensitivity.map_figure(curves())).data) == 2


def test_heat_maps_hold_the_rise_of_the_loss_measured_beside_estimated() -> None:
    figure = sensitivity.map_figure((curve("a", 1.0), curve("b", 0.5)))
    measured, estimated = figure["data"]
    assert measured["text"] == [["+0.18", "+0.50", "+1.6"], ["+0.090", "+0.25", "+0.81"]]
    assert np.square(measured["z"][0]) == pytest.approx([c - 0.31 for c in curve("a", 1.0).loss[1:]])
    assert np.square(estimated["z"][1]) == pytest.approx([c - 0.31 for c in curve("b", 0.5).estimate[1:]])
    assert measured["x"] == ["30 %", "50 %", "90 %"] and measured["zmax"] == estimated["zmax"]


def test_groups_of_one_name_keep_a_row_each() -> None:
    assert sensitivity.map_figure((curve("a", 1.0), curve("a", 0.5)))["data"][0]["y"] == ["a (1)", "a (2)"]


def test_table_states_points_for_a_fraction_and_units_otherwise() -> None:
    row = sensitivity.rows([curve("a", 1.0)], "top-1")[0]
    assert row.drops == ("-2.70", "-7.50", "-24.30") and row.losses[0] == "+0.18"
    assert sensitivity.rows([curve("a", 1.0)], "F-score")[0].drops[1] == "-0.0750"


def test_page_shows_the_section_between_widths_and_parity() -> None:
    page = Page(render_html(report()))
    titles = ("Widths, layer by layer", "Sensitivity to masked channels, group by group", "Parity:")
    order = [page.text.index(words) for words in titles]
    assert order == sorted(order)
    assert "layer2.1.conv1" in page.text and "-7.50" in page.text
    assert {"sensitivity-channels", "sensitivity-channels-map"} <= set(figures_of(render_html(report())))


def test_page_states_the_samples_and_that_the_test_split_was_not_read() -> None:
    counted = dataclasses.replace(curve("a", 1.0), samples=1256)
    assert "first 1,256 validation samples, none of the test split" in Page(render_html(report(counted))).text
    assert "on validation samples, none of the test split" in Page(render_html(report(curve("a", 1.0)))).text


def test_single_weights_have_a_section_of_their_own_that_speaks_of_layers() -> None:
    weights = [dataclasses.replace(curve(name, 0.4, 2304), masked="weights") for name in ("conv1", "fc")]
    text = render_html(report(curve("layer1", 1.0), *weights))
    page, figures = Page(text).text, figures_of(text)
    order = [page.index(f"Sensitivity to masked {what}") for what in ("channels, group by group", "weights, layer by layer")]
    assert order == sorted(order)
    assert "of its 2,304 weights masked" in page and "The one group is layer1" in page
    assert "Each line is one layer, masked by itself, the least important weights first." in page
    assert page.count("A norm over channels still counts masked ones") == 1
    assert [trace["name"] for trace in figures["sensitivity-weights"]["data"] if trace["showlegend"]] == ["fc", "conv1"]
    assert figures["sensitivity-channels-map"]["data"][0]["y"] == ["layer1"]
    assert figures["sensitivity-weights-map"]["data"][0]["y"] == ["conv1", "fc"]


def test_page_without_curves_has_no_section() -> None:
    text = render_html(sample_report())
    assert "Sensitivity to masked" not in text
    assert not any("sensitivity" in name for name in figures_of(text))


def test_hostile_group_names_stay_text() -> None:
    text = render_html(report(curve(HOSTILE, 1.0), curve("b", 0.2)))
    page, calm = Page(text), Page(render_html(report(curve("a", 1.0), curve("b", 0.2))))
    assert page.tags.count("script") == calm.tags.count("script") and "img" not in page.tags
    assert HOSTILE in page.text
    assert "<script>" not in json.dumps(figures_of(text))


def test_one_group_that_nothing_harms_still_renders() -> None:
    flat = SensitivityCurve("only", 4, (0.0, 0.5), (0.9, 0.9), (0.3, 0.3), (0.3, 0.3))
    assert "The one group is only (no difference with 50 %" in Page(render_html(report(flat))).text
