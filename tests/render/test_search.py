"""A search's page: where the numbers come from, validation and test apart, nothing from elsewhere, text that stays text."""

import dataclasses
import json
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest

import paredown
from paredown.core.errors import OutputError, SearchError
from paredown.core.search_report import Source
from paredown.nas import Limit, Objective, SearchResult
from paredown.render.search import curve_figure, front_figure, render_search, shared_figure, verdict
from tests.nas.toys import broken, score, toy
from tests.render.sample_search import sample_search
from tests.render.test_html import HOSTILE, Page, figures_of


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_search(sample_search()))


def test_a_table_is_never_called_training(page: Page) -> None:
    assert "nothing was trained here" in page.text
    assert "seconds are those its authors measured" in page.text.lower()
    assert "was trained for" not in page.text and "Training" not in page.text


@pytest.mark.parametrize(
    ("source", "words"),
    [("training", "was trained for its share"), ("supernet", "weights inherited"), ("proxy", "no accuracy was measured")],
)
def test_each_source_says_what_was_done(source: Source, words: str) -> None:
    text = Page(render_search(sample_search(source))).text
    assert words in text
    assert "benchmark's table" not in text


def test_validation_and_test_stand_apart(page: Page) -> None:
    assert "validation, by which it was chosen" in page.text and "test, read once afterwards" in page.text
    report = sample_search()
    assert "test" not in verdict(report)
    untested = dataclasses.replace(report, front=tuple(dataclasses.replace(each, test={}) for each in report.front))
    assert "read once" not in Page(render_search(untested)).text
    shown = json.dumps(figures_of(render_search(report)))
    assert "91.5" not in shown and "test" not in shown  # charts are of validation alone


def test_the_page_tells_luck_failures_and_what_is_shared(page: Page) -> None:
    assert "the best is the luckiest" in page.text and "(expected " in page.text
    assert "Once: RuntimeError: operator" in page.text
    assert "conv (80 %)" in page.text and "16 (30 %), 48 (10 %)" in page.text


def test_figures_are_valid_plotly_and_hold_every_evaluation() -> None:
    report = sample_search()
    curve, front, shared = (go.Figure(make(report)) for make in (curve_figure, front_figure, shared_figure))
    assert len(curve.data[0].x) == 39
    assert list(curve.data[1].y) == sorted(curve.data[1].y)
    assert len(front.data[0].x) == sum(each.kept and bool(each.validation) for each in report.evaluated)
    assert list(front.data[1].x) == sorted(front.data[1].x) and len(front.data[1].x) == len(report.front)
    assert [sum(column) for column in zip(*(bar.x for bar in shared.data), strict=True)] == pytest.approx([1.0, 1.0])


def test_recovered_subnets_have_a_table_with_bounds() -> None:
    text = Page(render_search(sample_search("supernet", recovered=True))).text
    assert "After recovery" in text and "operator 8 87.40 %" in text and "91.30 %" in text and "at most 0.90 points worse" in text
    assert "After recovery" not in Page(render_search(sample_search())).text.replace("“After recovery”", "")


def test_hostile_names_stay_text_and_nothing_is_loaded() -> None:
    text = render_search(sample_search("supernet", recovered=True, name=HOSTILE))
    hostile, calm = Page(text), Page(render_search(sample_search("supernet", recovered=True)))
    assert hostile.tags == calm.tags
    assert HOSTILE in hostile.text
    assert "<script>" not in json.dumps(figures_of(text))
    assert not re.findall(r'(?:src|href)="', re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))


def test_a_result_draws_itself(tmp_path: Path) -> None:
    goals = (Objective("accuracy", maximize=True), Objective("cost"))
    found = paredown.search(toy(), score, effort=30, objectives=goals, limits=(Limit("cost", high=5.0),))
    text = Page(found.save_html(tmp_path / "search.html").read_text()).text
    assert "30 evaluations" in text and "192 combinations of 3 dimensions" in text
    assert "cost, at most 5" in text and "own function" in text
    read = SearchResult.from_json(found.to_json())
    assert read == found
    with pytest.raises(SearchError, match="no renderer"):
        read.save_html(tmp_path / "again.html")
    with pytest.raises(OutputError, match="writable"):
        found.save_html(tmp_path / "nowhere" / "search.html")
    with pytest.raises(SearchError, match="no such operator"):
        paredown.search(toy(), broken, effort=3)


def test_a_search_that_found_nothing_within_the_limits_still_draws(tmp_path: Path) -> None:
    found = paredown.search(toy(), score, effort=10, limits=(Limit("cost", high=0.5),))
    text = Page(found.save_html(tmp_path / "search.html").read_text()).text
    assert "none within the limits" in text and "Nothing that was evaluated keeps the limits" in text
