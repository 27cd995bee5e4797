"""A report as one self-contained page: it opens offline, in light and dark, and on paper."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paredown.core.artifact import Candidate
from paredown.core.report import Report, SensitivityCurve, Stage
from paredown.render import bits, findings, numbers, plots, sensitivity


@dataclass(frozen=True)
class Row:
    """One line of the table of baseline against result. change: beside the result. interval: of the change, or of the result."""

    label: str
    baseline: str
    result: str
    change: str = ""
    interval: str = ""


@dataclass(frozen=True)
class StageRow:
    """One stage: what it changed against the stage before it that was kept, and the gate's word."""

    number: int
    name: str
    steps: str
    before: str
    verdict: str
    kept: bool
    latency: str
    latency_change: str
    size: str
    size_change: str
    quality: str
    drop: str
    macs: str
    reason: str
    seconds: str
    remarks: tuple[str, ...] = ()


def render_html(report: Report) -> str:
    """The page as text. Without JavaScript the charts are missing; the tables hold the same numbers."""
    page: str = environment().get_template("report.html").render(
        report=report,
        numbers=numbers,
        verdict=findings.verdict(report),
        findings=findings.findings(report),
        certainty=findings.certainty(report),
        binding=findings.binding(report),
        rows=tuple(_rows(report)),
        stages=tuple(_stage_row(report, number, stage) for number, stage in enumerate(report.stages, 1)),
        unchanged_widths=not any(width.before != width.after for width in report.widths),
        off_chart=plots.off_chart(report),
        sensitivity=[_sensitivity(curves, report) for curves in sensitivity.sections(report.sensitivity)],
        bits=_bits(report),
        noise=bits.noise_rows(report.quantization),
        noise_summary=bits.noise_summary(report.quantization) if report.quantization else "",
        environment=environment_rows(report),
        snippet=load_snippet(report),
        figures=embedded(_figures(report)),
        plotly=plotly(),
    )  # fmt: skip
    return page


def environment() -> Any:
    """Of the page templates: everything is escaped, and a name that is missing is an error."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.PackageLoader("paredown.render"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters["tight"] = _tight
    return found


def load_snippet(report: Report) -> str:
    """Five lines that run the result without paredown, on zeros; numpy and the runtime are all they import."""
    path = repr(report.best.artifact.path)
    if report.target.runtime == "openvino":
        return (
            "import numpy as np, openvino\n"
            f'model = openvino.compile_model({path}, "CPU")\n'
            "shapes = [[d.get_length() if d.is_static else 1 for d in i.partial_shape] for i in model.inputs]\n"
            "feed = [np.zeros(shape, i.element_type.to_dtype()) for shape, i in zip(shapes, model.inputs)]\n"
            "outputs = list(model(feed).values())  # your samples instead of zeros, batch first\n"
        )
    return (
        "import numpy as np, onnxruntime as ort\n"
        f'session = ort.InferenceSession({path}, providers=["CPUExecutionProvider"])\n'
        'kind = lambda t: {"float": "float32", "double": "float64"}.get(t, t)  # the others are named as in numpy\n'
        "zeros = lambda i: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], kind(i.type[7:-1]))\n"
        "outputs = session.run(None, {i.name: zeros(i) for i in session.get_inputs()})  # or your samples, batch first\n"
    )


def environment_rows(report: Report) -> tuple[tuple[str, str], ...]:
    """What the figures were measured with."""
    return (
        ("target", str(report.target)),
        *report.environment.items(),
        ("seed", str(report.seed)),
        ("time of the run", numbers.seconds(report.seconds)),
    )


def _tight(text: str) -> str:
    """No line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=(?:ms|s|min|B|KB|MB|GB|k|M|G|%|points|pairs)\b|%)", "\u00a0", text)


def _rows(report: Report) -> Iterator[Row]:
    base, best, metric = report.baseline, report.best, report.metric
    share = findings.relative(best.drop.value, base.quality.value) if best.drop.value else ""
    yield Row(
        f"{metric}, validation", _with_interval(base, metric), _with_interval(best, metric),
        numbers.worse(best.drop.value, metric) + (f" ({share})" if share else ""), _drop_bounds(best.drop, metric),
    )  # fmt: skip
    if base.test_quality is not None and best.test_quality is not None and best.test_drop is not None:
        yield Row(
            f"{metric}, test", numbers.quality(base.test_quality.value, metric), numbers.quality(best.test_quality.value, metric),
            numbers.worse(best.test_drop.value, metric), _drop_bounds(best.test_drop, metric),
        )  # fmt: skip
    yield Row(
        "latency", _milliseconds(base), _milliseconds(best), numbers.ratio(best.latency_ratio.value),
        numbers.interval(best.latency_ratio, "ratio"),
    )  # fmt: skip
    sizes = (base.artifact.size_bytes, best.artifact.size_bytes)
    yield Row("size of the file", numbers.size(sizes[0]), numbers.size(sizes[1]), numbers.ratio(best.size_ratio), "exact")
    yield _counted("MACs, one sample", base.macs, best.macs)
    yield _counted("parameters", base.parameters, best.parameters)
    if base.memory is not None and best.memory is not None:
        before, after = base.memory.value, best.memory.value
        texts = f"{numbers.significant(before)} MB", f"{numbers.significant(after)} MB"
        yield Row("peak memory of inference", *texts, numbers.ratio(after / before) if before else "", "whole process")
    yield Row("precision", base.artifact.precision, best.artifact.precision)


def _counted(label: str, before: int, after: int) -> Row:
    return Row(label, numbers.count(before), numbers.count(after), numbers.ratio(after / before) if before else "", "exact")


def _with_interval(candidate: Candidate, metric: str) -> str:
    spread = numbers.interval(candidate.quality, "quality", metric)
    return numbers.quality(candidate.quality.value, metric) + (f" ({spread})" if spread else "")


def _milliseconds(candidate: Candidate) -> str:
    spread = numbers.interval(candidate.latency, "ms")
    return numbers.milliseconds(candidate.latency.value) + (f" ({spread})" if spread else "")


def _drop_bounds(drop: Any, metric: str) -> str:
    """Both one-sided bounds of a drop."""
    if drop.low is None or drop.high is None:
        return ""
    return f"{numbers.at_best(drop.low, metric)}, {numbers.at_worst(drop.high, metric)}"


def _stage_row(report: Report, number: int, stage: Stage) -> StageRow:
    now, metric, before = stage.candidate, report.metric, findings.predecessor(report, stage)
    change = numbers.interval(stage.latency_ratio, "ratio")
    bound = "" if now.drop.high is None else f", {numbers.at_worst(now.drop.high, metric)}"
    return StageRow(
        number=number,
        name=stage.name,
        steps=findings.steps_text(stage.recipe),
        before=findings.built_on(report, stage),
        verdict="kept" if stage.kept else "rolled back",
        kept=stage.kept,
        latency=f"{numbers.milliseconds(before.latency.value)} → {numbers.milliseconds(now.latency.value)}",
        latency_change=numbers.ratio(stage.latency_ratio.value) + (f" ({change})" if change else ""),
        size=f"{numbers.size(before.artifact.size_bytes)} → {numbers.size(now.artifact.size_bytes)}",
        size_change=numbers.ratio(stage.size_ratio),
        quality=f"{numbers.quality(before.quality.value, metric)} → {numbers.quality(now.quality.value, metric)}",
        drop=f"in all {numbers.worse(now.drop.value, metric)}{bound}",
        macs=f"{numbers.count(before.macs)} → {numbers.count(now.macs)}",
        reason=findings.why(stage),
        seconds=numbers.seconds(stage.seconds),
        remarks=findings.remarks(stage),
    )


def _figures(report: Report) -> dict[str, plots.Figure]:
    figures = {"latency": plots.tradeoff(report, "latency"), "size": plots.tradeoff(report, "size")}
    if any(width.before != width.after for width in report.widths):
        figures["widths"] = plots.width_bars(report.widths)
    for curves in sensitivity.sections(report.sensitivity):
        name = _sensitivity_name(curves)
        figures[name] = sensitivity.curve_figure(curves, report.metric)
        figures[f"{name}-map"] = sensitivity.map_figure(curves)
    if any(row.cost is not None for row in report.bits):
        figures["bits"] = bits.size_figure(report.bits)
    if any(row.sensitivity is not None for row in report.bits):
        figures["bits-map"] = bits.map_figure(report.bits)
    if report.quantization:
        figures["noise"] = bits.noise_figure(report.quantization)
    return figures


def _bits(report: Report) -> dict[str, Any] | None:
    """What the section on bits shows; None where nothing is quantized."""
    if not report.bits:
        return None
    timed = any(row.sensitivity is not None and row.sensitivity.float_ms is not None for row in report.bits)
    return {
        "rows": bits.rows(report.bits),
        "summary": bits.summary(report.bits),
        "executed": bits.executed(report.operators, report.target),
        "measure": bits.measure(report.bits),
        "timed": timed,
        "drawn": any(row.cost is not None for row in report.bits),
    }


def _sensitivity_name(curves: Sequence[SensitivityCurve]) -> str:
    return f"sensitivity-{curves[0].masked}"


def _sensitivity(curves: Sequence[SensitivityCurve], report: Report) -> dict[str, Any]:
    """What one section on sensitivity shows."""
    return {
        "name": _sensitivity_name(curves),
        "noun": sensitivity.noun(curves),
        "part": curves[0].masked,
        "summary": sensitivity.summary(curves, report.metric),
        "caption": sensitivity.caption(curves),
        "heads": sensitivity.ratio_heads(curves),
        "rows": sensitivity.rows(curves, report.metric),
        "unit": "points" if numbers.is_fraction(report.metric) else "its own units",
    }


def embedded(figures: dict[str, plots.Figure]) -> Any:
    """JSON that can stand inside a <script>: no character in it can end the element or open a comment."""
    import markupsafe

    text = json.dumps(figures, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def plotly() -> Any:
    """plotly.js as the installed package ships it (its one bundle, 4.8 MB), so that the page opens offline.

    Raises ValueError where a future bundle could end the <script> element that holds it.
    """
    import markupsafe
    from plotly.offline import get_plotlyjs

    code = get_plotlyjs()
    if re.search(r"</script|<!--", code, re.IGNORECASE):
        raise ValueError("this release of plotly.js can't be inlined as it is")
    return markupsafe.Markup(code)
