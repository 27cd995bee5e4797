"""Reports and profiles come back from JSON equal, and refuse what isn't one."""

import dataclasses
import json
import pathlib

import pytest
from hypothesis import given, settings

from paredown.core.budget import Budget
from paredown.core.errors import ArtifactError, OutputError
from paredown.core.recipe import Recipe
from paredown.core.report import Profile, Report
from paredown.core.target import Target
from tests.core.strategies import budgets, recipes
from tests.render.sample import sample_report, unmet_report
from tests.render.test_terminal import sample_profile


@pytest.mark.parametrize("report", [sample_report(), unmet_report()], ids=["met", "unmet"])
def test_report_round_trips_through_json(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report


@given(budgets, recipes)
@settings(max_examples=30, deadline=None)
def test_any_budget_and_recipe_round_trip_inside_a_report(budget: Budget, recipe: Recipe) -> None:
    report = sample_report()
    varied = dataclasses.replace(report, budget=budget, best=dataclasses.replace(report.best, recipe=recipe))
    assert Report.from_json(varied.to_json()) == varied


def test_profile_round_trips_through_json() -> None:
    assert Profile.from_json(sample_profile().to_json()) == sample_profile()


def test_functions_of_a_report_are_not_written() -> None:
    report = sample_report()
    ready = dataclasses.replace(report, best=dataclasses.replace(report.best, load=lambda: 1)).with_renderer(lambda _: "page")
    assert "load" not in json.loads(ready.to_json())["best"]
    assert "render" not in json.loads(ready.to_json())
    assert ready.best.module() == 1


def test_report_saves_its_page_through_the_renderer(tmp_path: pathlib.Path) -> None:
    path = sample_report().with_renderer(lambda report: f"<p>{report.task}</p>").save_html(tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == "<p>CifarResNet-20</p>"


@pytest.mark.parametrize("damage", ["unknown field", "missing field", "not JSON", "wrong type", "unknown step"])
def test_damaged_report_is_refused_with_the_place(damage: str) -> None:
    data = json.loads(sample_report().to_json())
    match damage:
        case "unknown field":
            data["best"]["artifact"]["speed"], place = 3, "best.artifact.speed"
        case "missing field":
            place = "baseline.latency"
            del data["baseline"]["latency"]
        case "wrong type":
            data["seed"], place = "one", "seed"
        case "unknown step":
            data["best"]["recipe"]["steps"][0]["step"], place = "shrink", "each step names itself"
        case _:
            place = "Invalid JSON"
    text = "{" if damage == "not JSON" else json.dumps(data)
    with pytest.raises(ArtifactError, match="must be a report of paredown") as caught:
        Report.from_json(text)
    assert place in str(caught.value)


def test_report_of_a_machine_with_more_cores_can_be_read_here() -> None:
    report = dataclasses.replace(sample_report(), target=Target(threads=100_000))
    assert Report.from_json(report.to_json()) == report


def test_report_from_a_file_has_neither_model_nor_renderer(tmp_path: pathlib.Path) -> None:
    report = Report.from_json(sample_report().to_json())
    with pytest.raises(ArtifactError, match="load_checkpoint"):
        report.best.module()
    with pytest.raises(ArtifactError, match="paredown report DIR"):
        report.save_html(tmp_path / "x.html")


@pytest.mark.parametrize("place", ["absent/page.html", "."], ids=["no folder", "a folder"])
def test_page_that_cannot_be_written_is_a_clear_error_and_leaves_nothing(place: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OutputError, match="name a file"):
        sample_report().with_renderer(lambda _: "page").save_html(tmp_path / place)
    assert list(tmp_path.iterdir()) == []
