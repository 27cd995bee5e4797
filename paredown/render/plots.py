"""The report's charts as plotly figures, in plain data: {"data": [...], "layout": {...}}.

Colours of text and lines come from the page's style sheet, so that a chart follows light, dark and print. Every string of
the user is escaped here, because plotly reads a subset of HTML in its labels.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paredown.core.artifact import Candidate
from paredown.core.budget import Axis
from paredown.core.report import Report, Width
from paredown.render import numbers
from paredown.render.findings import steps_text, why

Figure = dict[str, Any]
BASELINE, KEPT, ROLLED_BACK, FRONT, RESULT = "baseline", "kept", "rolled back", "on the front", "result"
_BLUE, _RED, _GREY, _GREEN = "#3b7dd8", "#c8553d", "#8a8f98", "#2f9e6e"
_MARKERS: dict[str, dict[str, Any]] = {
    BASELINE: {"symbol": "square", "size": 10, "color": _GREY},
    KEPT: {"symbol": "circle", "size": 10, "color": _BLUE},
    ROLLED_BACK: {"symbol": "circle-open", "size": 10, "color": _RED, "line": {"width": 2}},
    FRONT: {"symbol": "diamond", "size": 9, "color": _BLUE},
    RESULT: {"symbol": "star", "size": 15, "color": _GREEN},
}


@dataclass(frozen=True)
class Point:
    """A candidate in the charts. label: short, beside the marker (the stage's number). note: for the hover label."""

    candidate: Candidate
    role: str
    label: str
    note: str


def points(report: Report) -> tuple[Point, ...]:
    """Every candidate once: the baseline, each stage in order, what else is on the front, the result."""
    drawn = {_key(report.baseline): Point(report.baseline, BASELINE, "", "")}
    for number, stage in enumerate(report.stages, 1):
        role = KEPT if stage.kept else ROLLED_BACK
        drawn[_key(stage.candidate)] = Point(stage.candidate, role, str(number), f"{steps_text(stage.recipe)}: {why(stage)}")
    for candidate in report.front:
        drawn.setdefault(_key(candidate), Point(candidate, FRONT, "", ""))
    if _key(report.best) != _key(report.baseline):
        known = drawn.get(_key(report.best))
        drawn[_key(report.best)] = Point(report.best, RESULT, known.label if known else "", known.note if known else "")
    return tuple(drawn.values())


def tradeoff(report: Report, axis: Axis) -> Figure:
    """The metric against latency or size, as ratios to the baseline, the budget's region shaded, the front as a line."""
    drawn = points(report)
    low, high = _quality_range(report, drawn)
    reach = 1.05 * max(1.0, *(_x(point.candidate, axis)[2] for point in drawn))
    traces = [_front_line(report, axis), *(_scatter(report, drawn, role, axis) for role in _MARKERS)]
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": {
            **layout(420),
            "xaxis": {"range": [0, reach], **_ratio_ticks(report, axis, reach)},
            "yaxis": {
                "range": [low, high],
                "title": {"text": text_of(report.metric), "standoff": 12},
                "tickformat": ".1%" if _percent(report) else ".4~g",
                "automargin": True,
            },
            "shapes": _budget_shapes(report, axis, reach, (low, high)),
            "annotations": [_budget_label(report, (low, high))],
            "legend": {"orientation": "h", "y": -0.24, "x": 0, "yanchor": "top"},
        },
    }


def off_chart(report: Report) -> tuple[str, ...]:
    """Candidates so much worse that showing them would flatten the rest: named below the chart instead."""
    drawn = points(report)
    low, high = _quality_range(report, drawn)
    outside = [point for point in drawn if not low <= point.candidate.quality.value <= high]
    return tuple(f"{p.candidate.name} ({numbers.quality(p.candidate.quality.value, report.metric)})" for p in outside)


def width_bars(widths: Sequence[Width]) -> Figure:
    """Output channels of each module, before (outline) and after (filled), first layer on top."""
    out = [width for width in widths if width.dimension == "out"]
    names = [text_of(width.module) for width in out]
    bar = {"type": "bar", "orientation": "h", "y": names}
    before = {"color": "rgba(138,143,152,0.28)", "line": {"color": _GREY, "width": 1}}
    texts = [f"{w.before} → {w.after}" if w.after != w.before else f"{w.before}" for w in out]
    hover = [f"{name}: {width.before} before, {width.after} after" for name, width in zip(names, out, strict=True)]
    return {
        "data": [
            {**bar, "name": "before", "x": [w.before for w in out], "marker": before, "text": texts, "textposition": "outside",
             "cliponaxis": False, "hovertext": hover, "hoverinfo": "text"},
            {**bar, "name": "after", "x": [w.after for w in out], "marker": {"color": _BLUE}, "width": 0.46, "hoverinfo": "skip"},
        ],
        "layout": {
            **layout(96 + 21 * len(out)),
            "barmode": "overlay",
            "xaxis": {"title": {"text": "output channels"}, "rangemode": "tozero", "automargin": True},
            "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
            "legend": {"orientation": "h", "y": 1, "x": 0, "yanchor": "bottom"},
            "margin": {"l": 10, "r": 64, "t": 36, "b": 60},
        },
    }  # fmt: skip


def layout(height: int) -> Figure:
    """What all charts share. height: in pixels."""
    clear = "rgba(0,0,0,0)"
    return {
        "height": height,
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "margin": {"l": 10, "r": 42, "t": 12, "b": 10},
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {"align": "left", "namelength": 0},
    }


def _key(candidate: Candidate) -> str:
    """A candidate is its file: the result is a stage's, copied and timed again."""
    return candidate.artifact.digest


def text_of(value: str) -> str:
    """A string of the user as plotly shows it letter by letter."""
    return html.escape(value, quote=False)


def _percent(report: Report) -> bool:
    return numbers.is_fraction(report.metric)


def higher_is_better(report: Report) -> bool:
    """Read off the numbers: a drop is positive where the result is worse, whatever the metric's direction."""
    base = report.baseline.quality.value
    signs = [(base - p.candidate.quality.value) * p.candidate.drop.value for p in points(report)]
    return sum(signs) >= 0


def _x(candidate: Candidate, axis: Axis) -> tuple[float, float, float]:
    """Ratio to the baseline, with the ends of its interval."""
    if axis == "size":
        return (candidate.size_ratio,) * 3
    measured = candidate.latency_ratio
    return measured.value, measured.lower, measured.upper


def _y_errors(candidate: Candidate, higher: bool) -> tuple[float, float]:
    """How far the metric may lie above and below the point: the paired interval of the drop, turned to the metric's direction."""
    drop = candidate.drop
    better, worse = drop.value - drop.lower, drop.upper - drop.value
    return (better, worse) if higher else (worse, better)


def _quality_range(report: Report, drawn: Sequence[Point]) -> tuple[float, float]:
    """The y range: everything kept and the budget's limit; what is much worse than either may fall outside."""
    higher, base = higher_is_better(report), report.baseline.quality.value
    limit = report.budget.drop_limit(base)
    sign = -1 if higher else 1
    reach = 8 * max(limit, *(abs(p.candidate.drop.value) for p in drawn if p.role != ROLLED_BACK), 1e-9)
    values = [base, base + sign * limit]
    for point in drawn:
        up, down = _y_errors(point.candidate, higher)
        value = point.candidate.quality.value
        if abs(value - base) <= reach:
            values += [value + up, value - down]
    pad = 0.08 * (max(values) - min(values)) or 0.01
    return min(values) - pad, max(values) + 2 * pad


def _scatter(report: Report, drawn: Sequence[Point], role: str, axis: Axis) -> Figure:
    mine = [point for point in drawn if point.role == role]
    xs = [_x(point.candidate, axis) for point in mine]
    ys = [_y_errors(point.candidate, higher_is_better(report)) for point in mine]
    bars = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 4, "color": _MARKERS[role]["color"]}
    return {
        "type": "scatter", "mode": "markers+text", "name": role, "x": [x[0] for x in xs],
        "y": [point.candidate.quality.value for point in mine],
        "text": [point.label for point in mine], "textposition": "top right", "marker": _MARKERS[role],
        "error_x": {**bars, "array": [x[2] - x[0] for x in xs], "arrayminus": [x[0] - x[1] for x in xs],
                    "visible": axis == "latency"},
        "error_y": {**bars, "array": [y[0] for y in ys], "arrayminus": [y[1] for y in ys]},
        "hovertext": [_hover(report, point) for point in mine], "hoverinfo": "text",
    }  # fmt: skip


def _hover(report: Report, point: Point) -> str:
    """A few short lines; a long reason is broken, because plotly doesn't."""
    it, metric = point.candidate, report.metric
    spread = numbers.interval(it.latency_ratio, "ratio")
    bound = "" if it.drop.high is None else f", {numbers.at_worst(it.drop.high, metric)}"
    lines = [
        f"<b>{text_of(it.name)}</b> ({point.role})",
        f"{text_of(metric)} {numbers.quality(it.quality.value, metric)}: {numbers.worse(it.drop.value, metric)}{bound}",
        f"{numbers.milliseconds(it.latency.value)}, {numbers.ratio(it.latency_ratio.value)}" + (f" ({spread})" if spread else ""),
        f"{numbers.size(it.artifact.size_bytes)}, {numbers.ratio(it.size_ratio)}",
        *(text_of(line) for line in _wrapped(point.note)),
    ]
    return "<br>".join(lines)


def _wrapped(text: str, width: int = 64, lines: int = 6) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, max_lines=lines, placeholder=" …")


def _front_line(report: Report, axis: Axis) -> Figure:
    """The front as seen in this plane: at each latency (size), the best metric that costs no more."""
    higher = higher_is_better(report)
    corners: list[tuple[float, float]] = []
    for x, quality in sorted((_x(c, axis)[0], c.quality.value * (1 if higher else -1)) for c in report.front):
        if not corners or quality > corners[-1][1]:
            corners.append((x, quality))
    return {
        "type": "scatter", "mode": "lines", "name": "front", "hoverinfo": "skip",
        "x": [x for x, _ in corners], "y": [y * (1 if higher else -1) for _, y in corners],
        "line": {"shape": "hv", "dash": "dot", "width": 1.5, "color": _BLUE},
    }  # fmt: skip


def _ratio_ticks(report: Report, axis: Axis, reach: float) -> Figure:
    """Ticks in both units: the ratio that the gate judges, and the ms or bytes it stands for."""
    base, show = (
        (report.baseline.latency.value, numbers.milliseconds)
        if axis == "latency"
        else (float(report.baseline.artifact.size_bytes), numbers.size)
    )
    step = 0.2 if reach <= 1.5 else 0.5
    values = [round(step * i, 2) for i in range(int(reach / step) + 1)]
    texts = [f"{value:g}x<br>{show(value * base)}" if value else "0" for value in values]
    title = f"latency, {text_of(str(report.target))}" if axis == "latency" else "size of the file"
    return {"tickvals": values, "ticktext": texts, "title": {"text": title}, "automargin": True}


def _corner(report: Report, axis: Axis, reach: float) -> tuple[float, float]:
    """Where the budget's region ends: x in ratios, y in the metric."""
    base = report.baseline.quality.value
    limit = report.budget.limit(axis)
    cost = report.baseline.latency.value if axis == "latency" else report.baseline.artifact.size_bytes
    x = reach if limit is None else min(reach, limit.ratio(cost))
    return x, base - report.budget.drop_limit(base) * (1 if higher_is_better(report) else -1)


def _budget_shapes(report: Report, axis: Axis, reach: float, span: tuple[float, float]) -> list[Figure]:
    x, y = _corner(report, axis, reach)
    far = span[1] if higher_is_better(report) else span[0]
    edge = {"type": "line", "line": {"color": _GREEN, "width": 1.5, "dash": "dash"}, "layer": "below"}
    shaded = {
        "type": "rect",
        "x0": 0,
        "x1": x,
        "y0": y,
        "y1": far,
        "fillcolor": "rgba(47,158,110,0.13)",
        "line": {"width": 0},
        "layer": "below",
    }
    across = {**edge, "x0": 0, "x1": x, "y0": y, "y1": y}
    upright = {**edge, "x0": x, "x1": x, "y0": y, "y1": far}
    return [shaded, across] + ([upright] if report.budget.limit(axis) is not None else [])


def _budget_label(report: Report, span: tuple[float, float]) -> Figure:
    higher = higher_is_better(report)
    return {
        "text": "within the budget", "x": 0, "y": span[1] if higher else span[0], "xanchor": "left",
        "yanchor": "top" if higher else "bottom", "showarrow": False, "xshift": 6, "font": {"size": 12, "color": _GREEN},
    }  # fmt: skip
