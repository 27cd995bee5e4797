"""Reports, profiles and comparisons as tables for a terminal, and the progress display of a long run."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from paredown.core.measurement import Measurement
from paredown.core.report import Barrier, Comparison, GroupRow, Profile, Report, SensitivityCurve
from paredown.render import bits, findings, numbers, sensitivity

_GROUPS_SHOWN = 20
_EXTREMES = 8  # groups shown at either end of sensitivity


def summary(report: Report) -> RenderableType:
    """The stages, baseline against result, and last, where the eye is, the verdict with what binds."""
    parts: list[RenderableType] = [_stage_table(report), Text()] if report.stages else []
    parts += [_result_table(report), Text()]
    for curves in sensitivity.sections(report.sensitivity):
        parts += [Text(sensitivity.summary(curves, report.metric), style="dim"), Text()]
    if executed := bits.executed(report.operators, report.target):
        parts += [Text(executed, style="dim"), Text()]
    parts += [Text(f"binds: {text}", style="red") for text in findings.binding(report)]
    parts += _busy(report.best.latency_ratio)
    return Group(*parts, _verdict(report))


def measure_table(comparison: Comparison) -> RenderableType:
    """A file against another: latency, bytes, and how far their outputs are apart."""
    it = comparison
    table = _table("", it.against, it.file, "ratio")
    table.add_row("latency", _timed(it.latency_against), _timed(it.latency), _ratio(it.latency_ratio))
    sizes = numbers.size(it.size_bytes_against), numbers.size(it.size_bytes)
    table.add_row("size", *(Text(size) for size in sizes), numbers.ratio(it.size_bytes / it.size_bytes_against))
    lines = [f"{it.target}; {it.latency_ratio.n} pairs, in turn"]
    if it.difference is not None:
        lines.append(f"outputs: max |difference| / max |y| = {it.difference:.2g}")
    if it.agreement is not None:
        lines.append(f"largest output at the same place for {numbers.percent(it.agreement)} of the samples")
    return Group(table, *(Text(line, style="dim") for line in lines), *_busy(it.latency_ratio))


def doctor_table(profile: Profile) -> RenderableType:
    """Where a model stands, what of it can be pruned, what can't and why, and what to mind."""
    parts: list[RenderableType] = [_profile_table(profile)]
    parts += [Text(f"warning: {text}", style="yellow") for text in profile.warnings]
    parts += [Text(), _groups(profile.groups), Text()]
    for curves in sensitivity.sections(profile.sensitivity):
        parts += [*_sensitivity(curves, profile.metric), Text()]
    if profile.quantization:
        parts += [_noise_table(profile), Text(bits.executed(profile.operators, profile.target), style="dim"), Text()]
    return Group(*parts, _barriers(profile.barriers))


def prunable_table(groups: Sequence[GroupRow], barriers: Sequence[Barrier]) -> RenderableType:
    """What can be pruned, what can't and why, of a model of which no more is known."""
    return Group(_groups(groups), Text(), _barriers(barriers))


def _groups(groups: Sequence[GroupRow]) -> RenderableType:
    return _group_table(groups) if groups else Text("nothing can be pruned", style="yellow")


def _barriers(barriers: Sequence[Barrier]) -> RenderableType:
    return _barrier_table(barriers) if barriers else Text("no barrier: every channel dimension can be pruned")


_SILENCE = 30  # seconds between two lines about one activity, where the output is no terminal


class ProgressBars:
    """A `core.progress.Progress` that draws one bar per stage; used as a context manager.

    A label is "stage: activity". Where the output is no terminal, each activity is one plain line when it ends, and one every
    half minute until then.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._stage, self._bar = "", TaskID(0)
        self._ended = self._written = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[activity]}", style="dim", markup=False),
            console=self.console,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.console.is_terminal:
            return
        if self._stage and kind is None:
            self._finish_bar()
        self._bars.stop()

    def __call__(self, label: str, fraction: float) -> None:
        stage, _, activity = label.partition(": ")
        if self.console.is_terminal:
            self._draw(stage, activity, fraction)
        else:
            self._write(label, fraction)

    def _draw(self, stage: str, activity: str, fraction: float) -> None:
        if stage != self._stage:
            if self._stage:
                self._finish_bar()
            self._bar = self._bars.add_task(stage, total=1.0, activity=activity)
            self._stage = stage
        # A bar at 1 stops its clock, and the stage may have another activity to come.
        self._bars.update(self._bar, completed=min(fraction, 0.999), activity=activity)

    def _finish_bar(self) -> None:
        self._bars.update(self._bar, completed=1.0, activity="")

    def _write(self, label: str, fraction: float) -> None:
        """The time that an activity took is what passed since the one before it ended."""
        now, state = time.monotonic(), f"{fraction:.0%}"
        if fraction >= 1:
            state, self._ended = f"done in {numbers.seconds(now - self._ended)}", now
        elif now - self._written < _SILENCE:
            return
        self.console.print(Text(f"{label}: {state}"), highlight=False, soft_wrap=True)
        self._written = now


def _table(*columns: str, **options: Any) -> Table:
    """A plain table; what it is given is text, never markup."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim", **options)
    for column in columns:
        table.add_column(Text(column))
    return table


def _verdict(report: Report) -> Text:
    drop, latency, size = findings.findings(report)
    words = f"{findings.verdict(report)}: {drop.value} ({drop.bound}), {latency.value} latency, {size.value} size"
    return Text(words, style="bold green" if report.met else "bold red")


def _ratio(measured: Measurement) -> Text:
    spread = numbers.interval(measured, "ratio")
    return Text(numbers.ratio(measured.value) + (f" ({spread})" if spread else ""))


def _busy(measured: Measurement) -> list[Text]:
    text = findings.busy(measured)
    return [Text(f"warning: {text}", style="yellow")] if text else []


def _timed(measured: Measurement) -> Text:
    spread = numbers.interval(measured, "ms")
    return Text(numbers.milliseconds(measured.value) + (f" ({spread})" if spread else ""))


def _mark(within: bool | None, limit: str) -> Text:
    if within is None:
        return Text(limit, style="dim")
    return Text.assemble(("✓ " if within else "✗ ", "green" if within else "red"), limit)


def _result_table(report: Report) -> Table:
    base, best, metric = report.baseline, report.best, report.metric
    drop, latency, size = findings.findings(report)
    table = _table(
        "", "baseline", "result", "change", "budget", title=Text(f"{report.task}, {report.target}"), title_justify="left"
    )
    table.add_row(
        Text(metric), numbers.quality(base.quality.value, metric), numbers.quality(best.quality.value, metric),
        Text(f"{drop.value}; {numbers.at_worst(best.drop.upper, metric)}"), _mark(drop.within, drop.limit),
    )  # fmt: skip
    if base.test_quality is not None and best.test_quality is not None and best.test_drop is not None:
        scores = (numbers.quality(of.value, metric) for of in (base.test_quality, best.test_quality))
        change = f"{numbers.worse(best.test_drop.value, metric)}; {numbers.at_worst(best.test_drop.upper, metric)}"
        table.add_row(Text(f"{metric}, test"), *scores, change, "")
    table.add_row(
        "latency", _timed(base.latency), _timed(best.latency), _ratio(best.latency_ratio), _mark(latency.within, latency.limit)
    )
    sizes = numbers.size(base.artifact.size_bytes), numbers.size(best.artifact.size_bytes)
    table.add_row("size", *sizes, size.value, _mark(size.within, size.limit))
    table.add_row("MACs", numbers.count(base.macs), numbers.count(best.macs), numbers.ratio(best.macs / max(base.macs, 1)), "")
    return table


def _stage_table(report: Report) -> Table:
    table = _table("stage", "latency", "size", "drop in all", "gate")
    for number, stage in enumerate(report.stages, 1):
        verdict = Text("kept", "green") if stage.kept else Text("rolled back", "red")
        table.add_row(
            Text(f"{number}. {findings.steps_text(stage.recipe)}"),
            _ratio(stage.latency_ratio),
            numbers.ratio(stage.size_ratio),
            numbers.worse(stage.candidate.drop.value, report.metric),
            Text.assemble(verdict, ": ", ("; ".join((findings.why(stage), *findings.remarks(stage))), "dim")),
        )
    return table


def _profile_table(profile: Profile) -> Table:
    table = _table("", "", title=Text(f"{profile.task}, {profile.target}"), title_justify="left", show_header=False)
    spread = numbers.interval(profile.quality, "quality", profile.metric)
    quality = numbers.quality(profile.quality.value, profile.metric) + (
        f" ({spread}, n = {profile.quality.n:,})" if spread else ""
    )
    table.add_row(Text(profile.metric), quality)
    table.add_row("latency", _timed(profile.latency))
    table.add_row("size", numbers.size(profile.size_bytes))
    table.add_row("MACs, one sample", numbers.count(profile.macs))
    table.add_row("parameters", numbers.count(profile.parameters))
    table.add_row("analysis took", numbers.seconds(profile.seconds))
    return table


def _group_table(groups: Sequence[GroupRow]) -> Table:
    """The groups that take part in most MACs, largest first."""
    shown = sorted(groups, key=lambda group: -group.macs_share)[:_GROUPS_SHOWN]
    more = len(groups) - len(shown)
    caption = f"and {more} smaller groups" if more else None
    table = _table("can be pruned", "channels", "share of MACs", caption=caption, caption_justify="left")
    for group in shown:
        table.add_row(Text(group.name), f"{group.size:,}", f"{100 * group.macs_share:.1f} %")
    return table


def _sensitivity(curves: Sequence[SensitivityCurve], metric: str) -> tuple[RenderableType, ...]:
    """The most sensitive groups, or layers, then the least, under what they show and over what it was measured on."""
    unit = " in points" if numbers.is_fraction(metric) else ""
    what, part = sensitivity.noun(curves), curves[0].masked
    return (
        Text(f"change of {metric}{unit} with so much of one {what} masked, its least important {part} first"),
        _sensitivity_table(curves, metric),
        Text(sensitivity.basis(curves), style="dim"),
    )


def _sensitivity_table(curves: Sequence[SensitivityCurve], metric: str) -> Table:
    """One line a group, or layer: the change of the metric by ratio, and of the loss at the middle ratio."""
    order = sensitivity.ranked(curves)
    heads, middle = sensitivity.ratio_heads(order), sensitivity.ratio_nearest(order[0], 0.5)
    table = _table("most sensitive first", order[0].masked, *heads, f"loss at {heads[middle]} (estimated)")
    lines = sensitivity.rows(order, metric)
    for number, row in enumerate(lines):
        if _EXTREMES <= number < len(lines) - _EXTREMES and len(lines) > 2 * _EXTREMES + 1:
            if number == _EXTREMES:
                table.add_row(Text(f"({len(lines) - 2 * _EXTREMES} {sensitivity.noun(order)}s between)", style="dim"))
            continue
        loss = f"{row.losses[middle]} ({row.estimates[middle]})"
        table.add_row(Text(row.group), f"{row.size:,}", *row.drops, loss)
    return table


def _noise_table(profile: Profile) -> Table:
    """The noisiest layers, each with what would help it."""
    shown, more = profile.quantization[:_GROUPS_SHOWN], len(profile.quantization) - _GROUPS_SHOWN
    caption = f"and {more} quieter layers" if more > 0 else None
    heads = ("noisiest first, dB", "", "simulation", "runtime", "clipped", "saturated", "remedy")
    table = _table(*heads, caption=caption, caption_justify="left")
    for row in shown:
        runtime = "" if row.runtime_db is None else f"{row.runtime_db:.1f}"
        counts = numbers.percent(row.clipped), f"{row.saturated:,}"
        table.add_row(Text(row.module), row.operator, f"{row.simulated_db:.1f}", runtime, *counts, Text(row.remedy or "fine"))
    return table


def _barrier_table(barriers: Sequence[Barrier]) -> Table:
    table = _table("can't be pruned", "where", "why")
    for barrier in barriers:
        table.add_row(Text(barrier.operator), Text(barrier.where), Text(barrier.reason))
    return table
