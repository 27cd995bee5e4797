"""Tables in a terminal, and the progress display with and without one."""

import dataclasses
import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

from paredown.core.measurement import Measurement
from paredown.core.report import Barrier, Comparison, GroupRow, Profile
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


def sample_comparison(agreement: float | None) -> Comparison:
    ratio = Measurement("latency_ratio", 0.449, "x", 60, 0.437, 0.461)
    return Comparison("b.onnx", "a.onnx", TARGET, timed(17.3, 0.4), timed(38.6, 0.5), ratio, 196_604, 1_093_410, 0.034, agreement)


@pytest.mark.parametrize("name", ["summary_met", "summary_unmet", "doctor", "measure"])
def test_tables_look_as_they_were_approved(name: str, golden: Callable[[str, str], None]) -> None:
    tables: dict[str, RenderableType] = {
        "summary_met": summary(sample_report()),
        "summary_unmet": summary(unmet_report()),
        "doctor": doctor_table(sample_profile()),
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
