"""Tables in a terminal, and the progress display with and without one."""

import dataclasses
import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

from paredown.core.measurement import Measurement
from paredown.core.recipe import Recipe
from paredown.core.report import Barrier, Comparison, GroupRow, Profile, Report, SensitivityCurve
from paredown.core.steps import Distill, Sparsify
from paredown.render.html import render_html
from paredown.render.terminal import ProgressBars, doctor_table, measure_table, summary
from tests.render.sample import TARGET, measured, sample_report, unmet_report


def shown(table: RenderableType, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def timed(value: float, spread: float) -> Measurement:
    return Measurement("latency_ms", value, "ms", 60, value - spread, value + spread)


def sample_profile() -> Profile:
    groups = tuple(GroupRow(f"layer{i}", 8 * i, 0.02 * i) for i in range(1, 25))
    barrier = Barrier("linear", "resnet.py:42", "its output is the model's output")
    return Profile(
        task="net", target=TARGET, metric="top-1", quality=measured("top-1", 0.9176, 0.0077), latency=timed(38.6, 0.5),
        size_bytes=1_093_410, macs=40_810_000, parameters=272_474, groups=groups, barriers=(barrier,),
        warnings=("validation is small",), seconds=1.3,
    )  # fmt: skip


def sensitive_profile(groups: int = 24) -> Profile:
    """The later a group, the more sensitive."""
    ratios = (0.0, 0.3, 0.5, 0.7)

    def line(start: float, slope: float) -> tuple[float, ...]:
        return tuple(start + slope * ratio for ratio in ratios)

    curves = tuple(
        SensitivityCurve(
            row.name, row.size, ratios, line(0.9176, -0.01 * i), line(0.31, 0.1 * i), line(0.31, 0.08 * i), samples=256
        )
        for i, row in enumerate(sample_profile().groups[:groups])
    )
    return dataclasses.replace(sample_profile(), sensitivity=curves)


def sample_comparison(agreement: float | None) -> Comparison:
    ratio = Measurement("latency_ratio", 0.449, "x", 60, 0.437, 0.461)
    return Comparison("b.onnx", "a.onnx", TARGET, timed(17.3, 0.4), timed(38.6, 0.5), ratio, 196_604, 1_093_410, 0.034, agreement)


@pytest.mark.parametrize("name", ["summary_met", "summary_unmet", "doctor", "doctor_sensitivity", "measure"])
def test_tables_look_as_they_were_approved(name: str, golden: Callable[[str, str], None]) -> None:
    tables: dict[str, RenderableType] = {
        "summary_met": summary(sample_report()),
        "summary_unmet": summary(unmet_report()),
        "doctor": doctor_table(sample_profile()),
        "doctor_sensitivity": doctor_table(sensitive_profile()),
        "measure": measure_table(sample_comparison(0.992)),
    }
    golden(f"{name}.txt", "\n".join(line.rstrip() for line in shown(tables[name], 120).splitlines()) + "\n")


def test_summary_ends_with_the_verdict() -> None:
    assert shown(summary(sample_report())).strip().splitlines()[-1].startswith("The budget is met: 0.50 points worse")
    assert shown(summary(unmet_report())).strip().splitlines()[-1].startswith("The budget is not met")


def test_summary_shows_intervals_limits_and_the_gates_reasons() -> None:
    text = shown(summary(sample_report()), 220)
    for words in ("0.449x (0.437 to 0.461x)", "✓ at most 0.6x = 23.2 ms", "rolled back: the drop may be as large as 2.56 points"):
        assert words in text


def test_summary_names_what_binds() -> None:
    text = shown(summary(unmet_report()), 220)
    assert "binds: latency: 0.449x" in text
    assert "✗ at most 0.4x = 15.4 ms" in text


def test_markup_in_the_users_strings_stays_text() -> None:
    report = dataclasses.replace(sample_report(), task="[red]net[/red]", metric="[bold]m[/]")
    text = shown(summary(report))
    assert "[red]net[/red]" in text
    assert "[bold]m[/]" in text


@pytest.mark.parametrize("agreement", [None, 0.992])
def test_measure_table_gives_both_files_and_the_ratio(agreement: float | None) -> None:
    text = shown(measure_table(sample_comparison(agreement)))
    for words in (
        "a.onnx",
        "b.onnx",
        "38.6 ms (38.1 to 39.1 ms)",
        "0.449x (0.437 to 0.461x)",
        "197 KB",
        "0.180x",
        "0.034",
        "60 pairs",
    ):
        assert words in text
    assert ("99.20 %" in text) is (agreement is not None)


def test_doctor_table_lists_groups_barriers_and_warnings() -> None:
    text = shown(doctor_table(sample_profile()))
    for words in (
        "91.76 %",
        "n = 5,000",
        "40.8 M",
        "layer24",
        "48.0 %",
        "and 4 smaller groups",
        "resnet.py:42",
        "warning: validation is small",
    ):
        assert words in text
    assert "layer1 " not in text


def test_doctor_table_of_a_model_that_cannot_be_pruned_says_so() -> None:
    text = shown(doctor_table(dataclasses.replace(sample_profile(), groups=(), barriers=(), warnings=())))
    assert "nothing can be pruned" in text


def test_doctor_table_shows_the_most_and_the_least_sensitive_groups_and_counts_those_between() -> None:
    text = shown(doctor_table(sensitive_profile())).partition("change of top-1")[2]
    order = [text.index(words) for words in ("layer24 ", "layer17 ", "(8 groups between)", "layer8 ", "layer1 ")]
    assert order == sorted(order) and "layer12 " not in text
    assert "first 256 validation samples" in text


@pytest.mark.parametrize("groups", [1, 17])
def test_doctor_table_shows_all_groups_where_leaving_some_out_saves_nothing(groups: int) -> None:
    text = shown(doctor_table(sensitive_profile(groups)))
    assert "between" not in text
    assert all(f"layer{i} " in text.partition("change of")[2] for i in range(1, groups + 1))


def test_summary_names_the_most_sensitive_group() -> None:
    report = dataclasses.replace(sample_report(), sensitivity=sensitive_profile().sensitivity)
    assert "The most sensitive group is layer24 " in shown(summary(report))


@pytest.mark.parametrize("ratio", [None, 0.61])
def test_stages_that_make_zeros_say_what_those_are_worth(ratio: float | None) -> None:
    report = sample_report()
    recipe = Recipe((Sparsify(ratio=0.5), Distill()))
    first = dataclasses.replace(report.stages[0], recipe=recipe, compressed_ratio=ratio)
    texts = [
        " ".join(shown(summary(dataclasses.replace(report, stages=(stage,))), 400).split()) for stage in (first, report.stages[0])
    ]
    page = " ".join(render_html(dataclasses.replace(report, stages=(first,))).replace("\u00a0", " ").split())
    for text in (texts[0], page):
        assert "same speed, since no runtime here skips them; smaller only as compressed bytes" in text
        assert ("compressed bytes: 0.610x packed by gzip" in text) is (ratio is not None)
    assert "zeros in place" not in texts[1]


def test_stages_whose_gates_were_folded_say_what_that_cost() -> None:
    report = sample_report()
    stage = dataclasses.replace(report.stages[0], folds=((0.31234, 0.3456),))
    folded = dataclasses.replace(report, stages=(stage,))
    for text in (shown(summary(folded), 400), render_html(folded).replace("\u00a0", " ")):
        assert "loss with its gates, and with them folded into the weights: 0.3123 → 0.3456" in " ".join(text.split())
    assert "folded" not in shown(summary(report), 400)
    assert Report.from_json(folded.to_json()) == folded


def run(bars: ProgressBars) -> None:
    with bars as progress:
        for label in ("baseline", "prune: distill", "prune: measure", "prune: distill"):
            for fraction in (0.0, 0.5, 1.0):
                progress(label, fraction)


def test_progress_without_a_terminal_is_one_plain_line_per_activity() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=80)
    run(ProgressBars(console))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split(": done in ")[0] for line in lines] == ["baseline", "prune: distill", "prune: measure", "prune: distill"]
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_progress_without_a_terminal_tells_of_a_long_activity_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), force_terminal=False, width=80)
    with ProgressBars(console) as progress:
        for seconds in range(0, 80, 4):
            now = 100.0 + seconds
            progress("prune: distill", seconds / 80)
        now = 180.0
        progress("prune: distill", 1.0)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["prune: distill: 40%", "prune: distill: 80%", "prune: distill: done in 1 min 20 s"]


def test_progress_in_a_terminal_draws_one_bar_per_stage() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    bars = ProgressBars(console)
    run(bars)
    assert [task.description for task in bars._bars.tasks] == ["baseline", "prune"]
    assert all(task.finished for task in bars._bars.tasks)


def test_progress_leaves_an_interrupted_stage_unfinished() -> None:
    bars = ProgressBars(Console(file=io.StringIO(), force_terminal=True, width=80))
    with pytest.raises(KeyboardInterrupt), bars as progress:
        progress("prune", 0.4)
        raise KeyboardInterrupt
    assert [task.completed for task in bars._bars.tasks] == [0.4]


@pytest.mark.parametrize(("load", "warned"), [(0.03, False), (0.97, True)])
def test_a_latency_timed_beside_other_work_comes_with_a_warning(load: float, warned: bool) -> None:
    report, comparison = sample_report(), sample_comparison(None)
    ratio = dataclasses.replace(report.best.latency_ratio, load=load)
    loaded = dataclasses.replace(report, best=dataclasses.replace(report.best, latency_ratio=ratio))
    texts = (
        shown(summary(loaded)),
        shown(measure_table(dataclasses.replace(comparison, latency_ratio=ratio))),
        render_html(loaded),
    )
    assert [f"ther processes kept {load:.1f} cores busy" in text.replace("\n", " ") for text in texts] == [warned] * 3
