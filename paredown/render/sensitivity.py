"""The report's sections on sensitivity: curves, heat maps and a table, from `SensitivityCurve`s. Plain data, as in `plots.py`.

One section for channels of groups, one for single weights of layers; each function takes the curves of one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from paredown.core.report import Masked, SensitivityCurve
from paredown.render import numbers
from paredown.render.plots import Figure, layout, text_of

_NAMED = 6  # curves that get a colour and a name; the rest is drawn in grey
_COLOURS = ("#c8553d", "#3b7dd8", "#2f9e6e", "#b07aa1", "#d09a2b", "#5f6b7a")
_GREY = "rgba(138,143,152,0.45)"
_SCALE = ((0.0, "rgba(59,125,216,0.06)"), (0.35, "rgba(59,125,216,0.55)"), (0.7, "#8a5a9e"), (1.0, "#c8553d"))


@dataclass(frozen=True)
class SensitivityRow:
    """One group, or layer, in the table: at each ratio the drop, and the rise of the loss, measured and estimated."""

    group: str
    size: int
    drops: tuple[str, ...]
    losses: tuple[str, ...]
    estimates: tuple[str, ...]


def sections(curves: Sequence[SensitivityCurve]) -> list[list[SensitivityCurve]]:
    """Curves of channels, then those of single weights; neither where there are none."""
    found = [[curve for curve in curves if curve.masked == kind] for kind in get_args(Masked)]
    return [section for section in found if section]


def noun(curves: Sequence[SensitivityCurve]) -> str:
    """What a curve belongs to."""
    return "group" if curves[0].masked == "channels" else "layer"


def caption(curves: Sequence[SensitivityCurve]) -> str:
    """What a figure shows, and what of it is no measurement."""
    what, part = noun(curves), curves[0].masked
    zeros = " A norm over channels still counts masked ones, which a cut model's doesn't." if part == "channels" else ""
    first = f"Each line is one {what}, masked by itself, the least important {part} first."
    return f"{first} Lines were measured; dotted lines are what first derivatives predict.{zeros} {basis(curves)}"


def ranked(curves: Sequence[SensitivityCurve]) -> list[SensitivityCurve]:
    """The most sensitive first: by the mean rise of the loss over the ratios."""
    return sorted(curves, key=lambda curve: -sum(curve.loss))


def summary(curves: Sequence[SensitivityCurve], metric: str) -> str:
    """Which group, or layer, suffers most and which least, at the ratio nearest to one half."""
    order, what = ranked(curves), noun(curves)
    parts = [_at_half(curve, metric) for curve in (order[0], order[-1])]
    if len(order) == 1:
        return f"The one {what} is {parts[0]}."
    return f"The most sensitive {what} is {parts[0]}; the least sensitive is {parts[1]}."


def basis(curves: Sequence[SensitivityCurve]) -> str:
    """What all points were measured on."""
    n = curves[0].samples
    samples = f"the first {n:,} validation samples" if n else "validation samples"
    return f"Measured in torch on {samples}, none of the test split."


def ratio_nearest(curve: SensitivityCurve, ratio: float) -> int:
    """Where in the curve's points after the first the one nearest to a ratio stands."""
    points = curve.ratios[1:]
    return min(range(len(points)), key=lambda i: abs(points[i] - ratio))


def rows(curves: Sequence[SensitivityCurve], metric: str) -> tuple[SensitivityRow, ...]:
    """The table, in the order of the model."""
    return tuple(
        SensitivityRow(
            curve.group,
            curve.size,
            tuple(_drop(drop, metric) for drop in curve.drops[1:]),
            tuple(_rise(value - curve.loss[0]) for value in curve.loss[1:]),
            tuple(_rise(value - curve.loss[0]) for value in curve.estimate[1:]),
        )
        for curve in curves
    )


def ratio_heads(curves: Sequence[SensitivityCurve]) -> tuple[str, ...]:
    """The table's columns: "30 %"."""
    return tuple(_percent(ratio) for ratio in curves[0].ratios[1:])


def curve_figure(curves: Sequence[SensitivityCurve], metric: str) -> Figure:
    """The metric against the ratio, and the loss, measured (line) and estimated (dots); the most sensitive groups in colour."""
    order = ranked(curves)
    styles = [(c, _COLOURS[i] if i < _NAMED else _GREY, i < _NAMED) for i, c in enumerate(order)]
    left = [_line(c, c.metric, colour, named, "x", "y") for c, colour, named in reversed(styles)]
    right = [_line(c, c.loss, colour, False, "x2", "y2") for c, colour, _ in reversed(styles)]
    dots = [_dots(c, colour) for c, colour, named in reversed(styles) if named]
    title = {"text": f"masked, of each {noun(curves)}"}
    ticks = {"tickformat": ".0%", "range": [0, 1], "title": title, "automargin": True}
    percent = ".0%" if numbers.is_fraction(metric) else ".4~g"
    return {
        "data": [*left, *right, *dots],
        "layout": {
            **layout(420),
            "xaxis": {**ticks, "domain": [0, 0.45]},
            "xaxis2": {**ticks, "domain": [0.55, 1], "anchor": "y2"},
            "yaxis": {"title": {"text": text_of(metric)}, "tickformat": percent, "automargin": True},
            "yaxis2": {"title": {"text": "loss"}, "anchor": "x2", "automargin": True, "range": _loss_range(curves)},
            "legend": {"orientation": "h", "y": -0.28, "x": 0, "yanchor": "top", "traceorder": "reversed"},
        },
    }


def map_figure(curves: Sequence[SensitivityCurve]) -> Figure:
    """The rise of the loss, group by ratio: measured on the left, estimated on the right, on one scale of colours.

    Colours follow the square root, so that one group that breaks the model doesn't leave all others pale.
    """
    measured = [[value - curve.loss[0] for value in curve.loss[1:]] for curve in curves]
    estimated = [[value - curve.loss[0] for value in curve.estimate[1:]] for curve in curves]
    top = max(max(row) for row in measured) or 1.0
    names = unique([text_of(curve.group) for curve in curves])
    title = {"text": f"masked, of each {noun(curves)}"}
    axis = {"type": "category", "showgrid": False, "title": title, "automargin": True}
    return {
        "data": [
            _heat(curves, names, measured, "measured", ("x", "y"), top),
            _heat(curves, names, estimated, "estimated", ("x2", "y2"), top),
        ],
        "layout": {
            **layout(140 + 21 * len(curves)),
            "xaxis": {**axis, "domain": [0, 0.47]},
            "xaxis2": {**axis, "domain": [0.53, 1], "anchor": "y2"},
            "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False, "automargin": True},
            "yaxis2": {"autorange": "reversed", "type": "category", "showgrid": False, "anchor": "x2", "showticklabels": False},
            "annotations": [_heading("measured", 0.235), _heading("estimated", 0.765)],
            "margin": {"l": 10, "r": 10, "t": 34, "b": 10},
        },
    }


def _at_half(curve: SensitivityCurve, metric: str) -> str:
    at = ratio_nearest(curve, 0.5) + 1
    ratio, drop = curve.ratios[at], curve.drops[at]
    return f"{curve.group} ({numbers.worse(drop, metric)} with {_percent(ratio)} of its {curve.size:,} {curve.masked} masked)"


def _drop(drop: float, metric: str) -> str:
    """A drop in a narrow cell: "-1.20", in points where the metric is a fraction."""
    if drop == 0:
        return "0"
    return f"{-100 * drop:+.2f}" if numbers.is_fraction(metric) else f"{'+' if drop < 0 else ''}{numbers.significant(-drop)}"


def _rise(value: float) -> str:
    if 0 < abs(value) < 1e-4:
        return f"{value:+.0e}"
    return f"{'+' if value > 0 else ''}{numbers.significant(value, 2)}"


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def _line(curve: SensitivityCurve, values: Sequence[float], colour: str, named: bool, x: str, y: str) -> Figure:
    return {
        "type": "scatter", "mode": "lines+markers", "x": list(curve.ratios), "y": list(values), "xaxis": x, "yaxis": y,
        "name": text_of(curve.group), "showlegend": named, "legendgroup": text_of(curve.group),
        "line": {"color": colour, "width": 2 if colour != _GREY else 1}, "marker": {"size": 5 if colour != _GREY else 3},
        "hovertext": [f"{text_of(curve.group)}, {_percent(r)}: {v:.4g}" for r, v in zip(curve.ratios, values, strict=True)],
        "hoverinfo": "text",
    }  # fmt: skip


def _dots(curve: SensitivityCurve, colour: str) -> Figure:
    label = f"{text_of(curve.group)}, estimated"
    return {
        "type": "scatter", "mode": "lines", "x": list(curve.ratios), "y": list(curve.estimate), "xaxis": "x2", "yaxis": "y2",
        "name": label, "showlegend": False, "legendgroup": text_of(curve.group),
        "line": {"color": colour, "width": 1.5, "dash": "dot"}, "hoverinfo": "name",
    }  # fmt: skip


def _loss_range(curves: Sequence[SensitivityCurve]) -> list[float]:
    """All that was measured; an estimate far above it may leave the picture."""
    values = [value for curve in curves for value in curve.loss]
    pad = 0.06 * (max(values) - min(values)) or 0.01
    return [min(values) - pad, max(values) + pad]


def _heat(
    curves: Sequence[SensitivityCurve],
    names: Sequence[str],
    values: list[list[float]],
    name: str,
    axes: tuple[str, str],
    top: float,
) -> Figure:
    heads = ratio_heads(curves)
    hover = [
        [f"{group}, {head}: loss {_rise(v)} {name}" for head, v in zip(heads, row, strict=True)]
        for group, row in zip(names, values, strict=True)
    ]
    depth = [[math.sqrt(max(v, 0.0)) for v in row] for row in values]
    return {
        "type": "heatmap", "name": name, "xaxis": axes[0], "yaxis": axes[1], "x": list(heads), "y": list(names), "z": depth,
        "zmin": 0, "zmax": math.sqrt(top), "colorscale": [list(stop) for stop in _SCALE], "showscale": False,
        "xgap": 1, "ygap": 1, "text": [[_rise(v) for v in row] for row in values], "texttemplate": "%{text}",
        "textfont": {"size": 11}, "hovertext": hover, "hoverinfo": "text",
    }  # fmt: skip


def unique(names: Sequence[str]) -> list[str]:
    """Plotly would stack two categories of one name."""
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _heading(text: str, x: float) -> Figure:
    return {
        "text": text,
        "x": x,
        "y": 1,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "showarrow": False,
    }
