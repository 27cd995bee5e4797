"""A search as one self-contained page: its curve, its front, what the good ones share; validation and test apart.

Where a table told every number, the page says so and speaks of no training.
"""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paredown.core.measurement import Measurement
from paredown.core.search_report import Evaluated, Option, Recovered, SearchReport
from paredown.render import numbers
from paredown.render.html import embedded, environment, plotly
from paredown.render.plots import Figure, layout

_BLUE, _GREY, _GREEN = "#3b7dd8", "#8a8f98", "#2f9e6e"
_SHOWN = 30  # rows of the front's table
SOURCES = {
    "table": "Every number comes from a benchmark's table: nothing was trained here. Seconds are those its authors measured.",
    "training": "Each architecture was trained for its share of the full training, then scored.",
    "supernet": "Subnets were scored with weights inherited from one supernet. "
    "Those under “After recovery” were then trained by themselves.",
    "proxy": "Architectures were scored by proxies at initialization: nothing was trained, and no accuracy was measured.",
    "function": "Numbers are what the caller's own function returned.",
}


@dataclass(frozen=True)
class Row:
    """One architecture of the front. figures: by the columns' names, as text."""

    values: str
    validation: tuple[str, ...]
    test: tuple[str, ...]


def render_search(report: SearchReport) -> str:
    """The page as text. Without JavaScript the charts are missing; the tables hold the same numbers."""
    metrics = _metrics(report)
    tests = tuple(dict.fromkeys(name for each in report.front for name in each.test))
    page: str = environment().get_template("search.html").render(
        report=report,
        verdict=verdict(report),
        source=SOURCES[report.source],
        metrics=metrics,
        tests=tests,
        rows=tuple(_row(each, metrics, tests) for each in report.front[:_SHOWN]),
        hidden=max(0, len(report.front) - _SHOWN),
        luck=any(each.expected for each in report.front),
        failed=tuple(_failures(report)),
        shared=tuple(_shared(report.shared)),
        recovered=tuple(_recovered(each) for each in report.recovered),
        figures=embedded(_figures(report)),
        plotly=plotly(),
    )  # fmt: skip
    return page


def verdict(report: SearchReport) -> str:
    """The headline: how many were looked at, and the best."""
    goal, best = report.goals[0].metric, report.best
    count = f"{len(report.evaluated)} evaluations"
    if best is None:
        return f"{count}: none within the limits"
    return f"{count}: {goal} {_number(best.validation[goal])} on validation"


def _metrics(report: SearchReport) -> tuple[str, ...]:
    """Objectives first, then limits, then what else was measured."""
    named = [goal.metric for goal in report.goals] + [limit.metric for limit in report.limits]
    return tuple(dict.fromkeys([*named, *(name for each in report.front for name in each.validation)]))


def _row(each: Evaluated, metrics: tuple[str, ...], tests: tuple[str, ...]) -> Row:
    shown = []
    for name in metrics:
        text = _number(each.validation[name]) if name in each.validation else ""
        shown.append(f"{text} (expected {_number(each.expected[name])})" if name in each.expected else text)
    return Row(_values(each.values), tuple(shown), tuple(_number(each.test[n]) if n in each.test else "" for n in tests))


def _values(values: Mapping[str, Option]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _number(value: float) -> str:
    return numbers.significant(value, 4)


def _failures(report: SearchReport) -> Iterator[tuple[str, int]]:
    """Each reason, and how often."""
    reasons = [each.failed for each in (*report.evaluated, *report.front) if each.failed]
    for reason in dict.fromkeys(reasons):
        yield reason, reasons.count(reason)


def _shared(shared: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, str, str]]:
    """Dimension, its commonest option with its share, the others."""
    for name, options in shared.items():
        ranked = [f"{option} ({100 * share:.0f} %)" for option, share in options.items()]
        yield name, ranked[0], ", ".join(ranked[1:])


def _recovered(each: Recovered) -> dict[str, str]:
    metric = each.quality.metric
    return {
        "subnet": _values(each.values),
        "inherited": numbers.quality(each.inherited, metric),
        "quality": numbers.quality(each.quality.value, metric),
        "drop": _drop(each.drop, metric),
        "test_quality": "" if each.test_quality is None else numbers.quality(each.test_quality.value, metric),
        "test_drop": "" if each.test_drop is None else _drop(each.test_drop, metric),
        "latency": "" if each.latency_ratio is None else numbers.ratio(each.latency_ratio.value),
        "interval": "" if each.latency_ratio is None else numbers.interval(each.latency_ratio, "ratio"),
        "macs": numbers.count(each.macs),
        "parameters": numbers.count(each.parameters),
    }


def _drop(drop: Measurement, metric: str) -> str:
    bound = "" if drop.high is None else f", {numbers.at_worst(drop.high, metric)}"
    return numbers.worse(drop.value, metric) + bound


def _figures(report: SearchReport) -> dict[str, Figure]:
    figures = {"curve": curve_figure(report), "shared": shared_figure(report)}
    if len(report.goals) > 1 or report.limits:
        figures["front"] = front_figure(report)
    return figures


def curve_figure(report: SearchReport) -> Figure:
    """The best so far against evaluations, and what each gave; a step where the fidelity rises starts a new line."""
    goal = report.goals[0].metric
    at = [i + 1 for i, each in enumerate(report.evaluated) if goal in each.validation]
    seen = [each.validation[goal] for each in report.evaluated if goal in each.validation]
    traces = [_dots(at, seen, _GREY, "each evaluation", ["" for _ in at])]
    for fidelity in sorted({point.fidelity for point in report.curve if point.best is not None}):
        mine = [p for p in report.curve if p.best is not None and p.fidelity == fidelity]
        name = "best so far" if fidelity == 1 else f"best so far, {100 * fidelity:.3g} % of the full training"
        line = {"shape": "hv", "width": 2.5, "color": _GREEN if fidelity == 1 else _BLUE}
        traces.append(
            {"type": "scatter", "mode": "lines", "name": name, "line": line, "hoverinfo": "skip",
             "x": [p.evaluations for p in mine], "y": [p.best for p in mine]}
        )  # fmt: skip
    span = _span(seen, report)
    return {"data": traces, "layout": _axes("evaluations", f"{goal}, validation", 360, span)}


def _span(seen: list[float], report: SearchReport) -> list[float] | None:
    """Of the y axis: the better nine tenths, so that one bad architecture doesn't flatten the rest."""
    if len(seen) < 20:
        return None
    ranked = sorted(seen, reverse=report.goals[0].maximize)
    best, worst = ranked[0], ranked[int(0.9 * (len(ranked) - 1))]
    pad = 0.06 * abs(best - worst) or 0.01
    return [min(best, worst) - pad, max(best, worst) + pad]


def front_figure(report: SearchReport) -> Figure:
    """The first objective against the second, or against the first limit: everything within the limits, the front as a line."""
    goal = report.goals[0].metric
    other = report.goals[1].metric if len(report.goals) > 1 else report.limits[0].metric
    inside = [e for e in report.evaluated if e.kept and goal in e.validation and other in e.validation]
    traces = [_dots([e.validation[other] for e in inside], [e.validation[goal] for e in inside], _GREY, "within the limits",
                    [_text(_values(e.values)) for e in inside])]  # fmt: skip
    front = sorted(report.front, key=lambda each: each.validation[other])
    marker = {"size": 9, "color": _BLUE, "symbol": "diamond"}
    traces.append(
        {"type": "scatter", "mode": "lines+markers", "name": "front", "marker": marker, "hoverinfo": "text",
         "line": {"dash": "dot", "width": 1.5, "color": _BLUE}, "hovertext": [_text(_values(e.values)) for e in front],
         "x": [e.validation[other] for e in front], "y": [e.validation[goal] for e in front]}
    )  # fmt: skip
    seen = [e.validation[goal] for e in inside]
    return {"data": traces, "layout": _axes(other, f"{goal}, validation", 420, _span(seen, report))}


def shared_figure(report: SearchReport) -> Figure:
    """For each dimension how its options are shared out among the best, as stacked bars, first dimension on top."""
    names = [_text(name) for name in report.shared]
    options = dict.fromkeys(option for shares in report.shared.values() for option in shares)
    traces = [
        {"type": "bar", "orientation": "h", "name": _text(option), "y": names,
         "x": [shares.get(option, 0.0) for shares in report.shared.values()],
         "hovertext": [f"{_text(option)}: {100 * shares.get(option, 0.0):.0f} %" for shares in report.shared.values()],
         "hoverinfo": "text"}
        for option in options
    ]  # fmt: skip
    height = 110 + 26 * len(names)
    axes = _axes("", "", height)
    axes["xaxis"] |= {"range": [0, 1], "tickformat": ".0%"}
    axes["yaxis"] |= {"autorange": "reversed", "type": "category"}
    return {"data": traces, "layout": {**axes, "barmode": "stack", "showlegend": len(options) <= 12}}


def _dots(x: list[Any], y: list[float], color: str, name: str, hover: list[str]) -> Figure:
    marker = {"size": 6, "color": color, "opacity": 0.55}
    return {"type": "scatter", "mode": "markers", "name": name, "x": x, "y": y, "marker": marker, "hovertext": hover,
            "hoverinfo": "text+y"}  # fmt: skip


def _axes(x: str, y: str, height: int, span: list[float] | None = None) -> Figure:
    """span: of the y axis; None: as the data have it."""
    yaxis: Figure = {"title": {"text": _text(y), "standoff": 12}, "automargin": True, "tickformat": ".4~g"}
    if span is not None:
        yaxis["range"] = span
    return {
        **layout(height),
        "xaxis": {"title": {"text": _text(x)}, "automargin": True},
        "yaxis": yaxis,
        "legend": {"orientation": "h", "y": -0.24, "x": 0, "yanchor": "top"},
    }


def _text(value: str) -> str:
    return html.escape(value, quote=False)
