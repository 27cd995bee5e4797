"""The report's section on bits: what each layer is stored in and reads, what that bought, and what it was chosen from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paredown.core.report import BitsSensitivity, LayerBits, NoisyLayer, Operators, WidthLoss
from paredown.core.target import Target
from paredown.render import numbers
from paredown.render.plots import Figure, layout, text_of
from paredown.render.sensitivity import unique

_FLOAT = 32
_BLUE, _GREY, _RED = "#3b7dd8", "#8a8f98", "#c8553d"
_SCALE = ((0.0, "rgba(59,125,216,0.06)"), (0.5, "rgba(59,125,216,0.55)"), (0.8, "#8a5a9e"), (1.0, "#c8553d"))
_RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_MEASURES = {
    "noise": "squared error of the model's output, relative to the output, on training samples",
    "metric": "drop of the metric on the validation split, in its own units",
    "hessian": "predicted rise of half the squared distance of the output, from the curvature, on training samples",
}


@dataclass(frozen=True)
class BitsRow:
    """One layer in the table, every number as text. in_float: what the model takes more with the layer in float."""

    layer: str
    operator: str
    count: str
    stored: str
    reads: str
    size: str
    bops: str
    in_float: str
    note: str


def rows(bits: Sequence[LayerBits]) -> tuple[BitsRow, ...]:
    """In the order of the model."""
    return tuple(_row(row) for row in bits)


def summary(bits: Sequence[LayerBits]) -> str:
    """What all layers together take, as they are and in float."""
    costs = [row.cost for row in bits if row.cost is not None]
    if not costs:
        return ""
    size, whole = sum(c.size_bytes for c in costs), sum(c.size_bytes_float for c in costs)
    bops, most = sum(c.bops for c in costs), sum(c.bops_float for c in costs)
    return (
        f"Together the weights of convolutions and linear layers take {numbers.size(size)} instead of {numbers.size(whole)} in "
        f"float ({numbers.ratio(size / whole)}), and one sample {numbers.count(bops)} bit operations instead of "
        f"{numbers.count(most)} ({numbers.ratio(bops / most)})."
    )


def executed(operators: Operators | None, target: Target) -> str:
    """What the runtime computes on integers and what not; empty where it wasn't asked."""
    if operators is None:
        return ""
    whole, part = (", ".join(f"{n} {kind}" for kind, n in each.items()) for each in (operators.int8, operators.floating))
    left = f"{operators.conversions} conversions between floats and integers are left" if operators.conversions else ""
    told = [f"{_RUNTIMES[target.runtime]} computes {whole or 'nothing'} on integers", f"{part} in float" if part else "", left]
    return "; ".join(text for text in told if text) + "."


def measure(bits: Sequence[LayerBits]) -> str:
    """What the sensitivities are, in words; empty where bits weren't chosen by layer."""
    found = next((row.sensitivity.measure for row in bits if row.sensitivity is not None), "")
    return _MEASURES.get(found, found)


@dataclass(frozen=True)
class NoiseRow:
    """What quantization costs one layer by itself, every number as text."""

    layer: str
    operator: str
    simulated: str
    runtime: str
    clipped: str
    saturated: str
    remedy: str


def noise_rows(layers: Sequence[NoisyLayer]) -> tuple[NoiseRow, ...]:
    """In the order given: the noisiest first."""
    return tuple(
        NoiseRow(
            layer=each.module,
            operator=each.operator,
            simulated=_decibels(each.simulated_db),
            runtime="" if each.runtime_db is None else _decibels(each.runtime_db),
            clipped=f"{100 * each.clipped:.2g} %" if each.clipped else "0",
            saturated=f"{each.saturated:,}",
            remedy=each.remedy,
        )
        for each in layers
    )


def noise_summary(layers: Sequence[NoisyLayer]) -> str:
    """How many layers want mending, and the worst."""
    wanting = [each for each in layers if each.remedy]
    worst = min(layers, key=lambda each: each.simulated_db)
    said = f"The noisiest is {worst.module}, with {_decibels(worst.simulated_db)}"
    if not wanting:
        return f"{said}. No layer wants mending."
    return f"{said}. {len(wanting)} of {len(layers)} want mending: what to write in the quantize step stands beside them."


def noise_figure(layers: Sequence[NoisyLayer]) -> Figure:
    """Signal to noise of each layer in torch and in the runtime, the noisiest on top."""
    names = unique([text_of(each.module) for each in layers])
    hover = [f"{name}: {_decibels(each.simulated_db)} in torch" for name, each in zip(names, layers, strict=True)]
    known = [(name, each.runtime_db) for name, each in zip(names, layers, strict=True) if each.runtime_db is not None]
    return {
        "data": [
            {"type": "bar", "orientation": "h", "y": names, "x": [each.simulated_db for each in layers], "name": "in torch",
             "marker": {"color": [_RED if each.remedy else _BLUE for each in layers], "opacity": 0.7}, "hovertext": hover,
             "hoverinfo": "text", "showlegend": False},
            {"type": "scatter", "mode": "markers", "y": [name for name, _ in known], "x": [db for _, db in known],
             "name": "in the runtime", "marker": {"symbol": "line-ns-open", "size": 13, "color": _GREY, "line": {"width": 3}},
             "hovertext": [f"{name}: {_decibels(db)} in the runtime" for name, db in known], "hoverinfo": "text"},
        ],
        "layout": {
            **layout(96 + 21 * len(layers)),
            "xaxis": {"title": {"text": "signal to quantization noise, dB"}, "rangemode": "tozero", "automargin": True},
            "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
            "legend": {"orientation": "h", "y": 1, "x": 0, "yanchor": "bottom"},
            "margin": {"l": 10, "r": 30, "t": 36, "b": 60},
        },
    }  # fmt: skip


def size_figure(bits: Sequence[LayerBits]) -> Figure:
    """Bytes of each layer's weights, in float (outline) and as stored (filled), first layer on top."""
    known = [(row, row.cost) for row in bits if row.cost is not None]
    names = unique([text_of(row.module) for row, _ in known])
    bar = {"type": "bar", "orientation": "h", "y": names}
    outline = {"color": "rgba(138,143,152,0.28)", "line": {"color": _GREY, "width": 1}}
    texts = [_widths(row) for row, _ in known]
    hover = [
        f"{name}: {numbers.size(cost.size_bytes)}, {numbers.size(cost.size_bytes_float)} in float; {text}"
        for name, (_, cost), text in zip(names, known, texts, strict=True)
    ]
    return {
        "data": [
            {**bar, "name": "in float", "x": [cost.size_bytes_float for _, cost in known], "marker": outline, "text": texts,
             "textposition": "outside", "cliponaxis": False, "hovertext": hover, "hoverinfo": "text"},
            {**bar, "name": "as stored", "x": [cost.size_bytes for _, cost in known], "marker": {"color": _BLUE}, "width": 0.46,
             "hoverinfo": "skip"},
        ],
        "layout": {
            **layout(96 + 21 * len(known)),
            "barmode": "overlay",
            "xaxis": {"title": {"text": "bytes of the weights"}, "rangemode": "tozero", "automargin": True, "tickformat": "~s"},
            "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
            "legend": {"orientation": "h", "y": 1, "x": 0, "yanchor": "bottom"},
            "margin": {"l": 10, "r": 96, "t": 36, "b": 60},
        },
    }  # fmt: skip


def map_figure(bits: Sequence[LayerBits]) -> Figure:
    """What each width loses, layer by layer: of the weights on the left, of what is read on the right. Dots: the choice.

    Colours follow the logarithm, over six decades at most.
    """
    known = [(row, row.sensitivity) for row in bits if row.sensitivity is not None]
    names = unique([text_of(row.module) for row, _ in known])
    sides = [("weights", [s.weights for _, s in known], [row.weight_bits for row, _ in known])]
    if any(s.activations for _, s in known):
        sides.append(("what is read", [s.activations for _, s in known], [row.activation_bits for row, _ in known]))
    span = _span([s for _, s in known])
    data, axes, headings = [], {}, []
    for index, (title, losses, chosen) in enumerate(sides):
        own = "" if index == 0 else str(index + 1)
        left, right = index / len(sides) + 0.03 * index, (index + 1) / len(sides)
        data.append(_heat(names, losses, chosen, own, span))
        shown = {} if index == 0 else {"showticklabels": False, "anchor": f"x{own}"}
        anchor = {} if index == 0 else {"anchor": f"y{own}"}
        axes[f"xaxis{own}"] = {"type": "category", "showgrid": False, "domain": [left, right], "automargin": True, **anchor}
        axes[f"yaxis{own}"] = {"autorange": "reversed", "type": "category", "showgrid": False, "automargin": True, **shown}
        headings.append({"text": title, "x": (left + right) / 2, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "center",
                         "yanchor": "bottom", "showarrow": False})  # fmt: skip
    return {
        "data": data,
        "layout": {
            **layout(120 + 21 * len(known)),
            **axes,
            "annotations": headings,
            "margin": {"l": 10, "r": 10, "t": 34, "b": 10},
            "showlegend": False,
        },
    }


def _row(row: LayerBits) -> BitsRow:
    cost, more = row.cost, None if row.sensitivity is None else row.sensitivity.float_ms
    return BitsRow(
        layer=row.module,
        operator=row.operator,
        count=numbers.count(row.parameters),
        stored=_words(row.weight_bits),
        reads=_words(row.activation_bits),
        size="" if cost is None else f"{numbers.size(cost.size_bytes)} of {numbers.size(cost.size_bytes_float)}",
        bops="" if cost is None else f"{numbers.count(cost.bops)} of {numbers.count(cost.bops_float)}",
        in_float="" if more is None else f"{'+' if more > 0 else ''}{numbers.milliseconds(more)}",
        note=row.note,
    )


def _decibels(value: float) -> str:
    return f"{value:.1f} dB"


def _words(bits: int) -> str:
    return f"{bits} bits" if bits < _FLOAT else "float"


def _widths(row: LayerBits) -> str:
    return f"{_words(row.weight_bits)}, reads {_words(row.activation_bits)}"


def _span(found: Sequence[BitsSensitivity]) -> tuple[float, float]:
    """The logarithms between which colours run."""
    values = [math.log10(w.loss) for s in found for w in (*s.weights, *s.activations) if w.loss > 0]
    top = max(values, default=0.0)
    return max(min(values, default=top - 1), top - 6), top


def _heat(
    names: Sequence[str],
    losses: Sequence[Sequence[WidthLoss]],
    chosen: Sequence[int],
    own: str,
    span: tuple[float, float],
) -> Figure:
    heads = _heads(losses)
    low, high = span
    depth = [[min(max(math.log10(w.loss), low), high) if w.loss > 0 else low for w in row] for row in losses]
    texts = [[_marked(w, b) for w in row] for row, b in zip(losses, chosen, strict=True)]
    hover = [[f"{name}, {_words(w.bits)}: {_loss(w.loss)}" for w in row] for name, row in zip(names, losses, strict=True)]
    return {
        "type": "heatmap", "xaxis": f"x{own}", "yaxis": f"y{own}", "x": heads, "y": list(names), "z": depth, "zmin": low,
        "zmax": high if high > low else low + 1, "colorscale": [list(stop) for stop in _SCALE], "showscale": False, "xgap": 1,
        "ygap": 1, "text": texts, "texttemplate": "%{text}", "textfont": {"size": 11}, "hovertext": hover, "hoverinfo": "text",
    }  # fmt: skip


def _marked(loss: WidthLoss, chosen: int) -> str:
    return f"<b>\u25cf {_loss(loss.loss)}</b>" if loss.bits == chosen else _loss(loss.loss)


def _heads(losses: Sequence[Sequence[WidthLoss]]) -> list[str]:
    return [_words(w.bits) for w in max(losses, key=len)]


def _loss(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
