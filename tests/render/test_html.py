"""The page: the verdict in words and numbers, nothing from elsewhere, and no string of the user that is more than text."""

import dataclasses
import html.parser
import json
import pathlib
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from paredown.core.artifact import Candidate
from paredown.core.recipe import Recipe
from paredown.core.report import (
    Barrier,
    BitsSensitivity,
    LayerBits,
    LayerCost,
    NoisyLayer,
    Operators,
    Parity,
    Report,
    Stage,
    Width,
    WidthLoss,
)
from paredown.core.steps import MixedBits, Quantize
from paredown.core.target import Target
from paredown.render.bits import executed
from paredown.render.findings import steps_text
from paredown.render.html import load_snippet, render_html
from tests.render.sample import sample_report, unmet_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&<!--"


class Page(html.parser.HTMLParser):
    """Tags and attributes of a page, the text outside of scripts and styles, and what stands in each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem is None:
            self.words.append(data)


def figures_of(text: str) -> dict[str, dict[str, object]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def hostile_report() -> Report:
    """A report in which every string that a user, their model or their file can choose is hostile."""
    report = sample_report()

    def spoiled(candidate: Candidate) -> Candidate:
        artifact = dataclasses.replace(candidate.artifact, path=HOSTILE, precision=HOSTILE)
        return dataclasses.replace(candidate, name=HOSTILE, artifact=artifact, checkpoint=HOSTILE)

    def spoiled_stage(stage: Stage) -> Stage:
        return dataclasses.replace(stage, name=HOSTILE, reason=HOSTILE, candidate=spoiled(stage.candidate))

    return dataclasses.replace(
        report,
        task=HOSTILE,
        metric=HOSTILE,
        met=False,
        binding=(HOSTILE,),
        baseline=spoiled(report.baseline),
        best=spoiled(report.best),
        front=tuple(spoiled(candidate) for candidate in report.front),
        stages=tuple(spoiled_stage(stage) for stage in report.stages),
        widths=(Width(HOSTILE, "out", 8, 4),),
        parity=(Parity(HOSTILE, 2, HOSTILE, 1e-6, 1e-4),),
        barriers=(Barrier(HOSTILE, HOSTILE, HOSTILE),),
        bits=(LayerBits(HOSTILE, HOSTILE, 8, 8, 32, HOSTILE, LayerCost(8, 32, 64, 1024), hostile_sensitivity()),),
        quantization=(NoisyLayer(HOSTILE, HOSTILE, 5.0, 6.0, 0.1, 3, HOSTILE),),
        environment={HOSTILE: HOSTILE},
    )


def hostile_sensitivity() -> BitsSensitivity:
    return BitsSensitivity(HOSTILE, (WidthLoss(4, 0.1), WidthLoss(8, 0.0)))


@pytest.fixture(scope="module")
def met() -> str:
    return render_html(sample_report())


@pytest.fixture(scope="module")
def unmet() -> str:
    return render_html(unmet_report())


def test_verdict_states_drop_bound_and_budget_in_points_and_relative(met: str) -> None:
    text = Page(met).text
    assert "The budget is met" in text
    for words in (
        "0.50 points worse",
        "0.54 % of the baseline",
        "at most 0.92 points worse, with 95 % confidence",
        "at most 1.00 points worse (1.09 % of the baseline)",
    ):
        assert words in text


def test_verdict_comes_before_the_evidence(met: str) -> None:
    text = Page(met).text
    order = [text.index(words) for words in (
        "The budget is met", "How sure is this", "Baseline against result", "What it costs", "What each stage brought",
        "Widths, layer by layer", "Parity", "What could not be pruned", "Environment", "Recipe", "Use the file",
    )]  # fmt: skip
    assert order == sorted(order)


def test_latency_and_size_stand_beside_their_budget_with_interval(met: str) -> None:
    text = Page(met).text
    for words in (
        "0.449x",
        "0.437 to 0.461x",
        "38.6 ms → 17.3 ms",
        "at most 0.6x = 23.2 ms",
        "1.09 MB → 197 KB",
        "0.25x = 273 KB",
    ):
        assert words in text


def test_unmet_budget_says_what_binds_and_marks_that_axis_only(unmet: str) -> None:
    text = Page(unmet).text
    assert "The budget is not met" in text
    assert "What binds" in text
    assert "latency: 0.449x, 0.437 to 0.461x at 95 %, 100 pairs; the budget says at most 0.4x = 15.4 ms" in text
    assert text.count("✗ outside") == 1
    assert text.count("✓ within") == 2


def test_met_budget_has_no_section_on_what_binds(met: str) -> None:
    assert "What binds" not in Page(met).text


def test_confidence_is_told_in_words_with_sample_count(met: str) -> None:
    text = Page(met).text
    assert "On 5,000 validation samples" in text
    assert "one-sided 95 % bound" in text
    assert "5,000 test samples were read once" in text


def test_missing_test_set_is_said(unmet: str) -> None:
    report = unmet_report()
    without = dataclasses.replace(report, best=dataclasses.replace(report.best, test_quality=None, test_drop=None))
    assert "There is no test set" in Page(render_html(without)).text
    assert "There is no test set" not in Page(unmet).text


def test_rolled_back_stage_shows_its_reason_and_what_it_was_built_on(met: str) -> None:
    text = Page(met).text
    assert "rolled back the drop may be as large as 2.56 points" in text
    assert "prune ratio 0.4, distill after stage 1; took 2 min 03 s" in text


def test_page_loads_nothing_from_elsewhere(met: str) -> None:
    page = Page(met)
    assert not [value for name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert "link" not in page.tags and "img" not in page.tags and "iframe" not in page.tags
    assert "@import" not in met.partition("<body>")[0] and "url(" not in met.partition("<body>")[0]


def test_plotly_is_inlined_once(met: str) -> None:
    assert len(re.findall(r"\* plotly\.js v\d", met)) == 1
    assert len(met) < 6_000_000


def test_no_bare_flops_anywhere_a_reader_looks(met: str) -> None:
    text = Page(met).text
    assert "MACs" in text
    assert "flop" not in text.lower()


def test_hostile_strings_stay_text() -> None:
    calm, page = Page(render_html(sample_report())), Page(render_html(hostile_report()))
    assert page.tags.count("script") == calm.tags.count("script")
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text


def test_hostile_strings_cannot_end_the_json_and_stay_text_in_charts() -> None:
    text = render_html(hostile_report())
    body = text.split('id="figures">')[1].split("</script>")[0]
    assert not set("<>&") & set(body)
    figures = figures_of(text)
    assert figures["widths"]["data"][0]["y"] == [
        "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt;&amp;&lt;!--"
    ]  # type: ignore[index]
    assert "<script>" not in json.dumps(figures)


def test_bits_per_layer_are_shown_with_the_reason_for_float() -> None:
    rows = (LayerBits("conv1", "conv2d", 432, 4, 8), LayerBits("rnn", "lstm", 5120, 8, 32, "floats only"))
    text = Page(render_html(dataclasses.replace(sample_report(), bits=rows))).text
    for words in ("Bits per layer", "conv1", "4 bits", "rnn", "float", "floats only"):
        assert words in text
    assert "Bits per layer" not in Page(render_html(sample_report())).text


def test_what_the_runtime_computes_on_integers_is_told() -> None:
    rows, found = (LayerBits("conv1", "conv2d", 432, 8, 8),), Operators({"QLinearConv": 49, "QGemm": 1}, {"ReduceMean": 1}, 3)
    text = Page(render_html(dataclasses.replace(sample_report(), bits=rows, operators=found))).text.replace("\xa0", " ")
    told = "ONNX Runtime computes 49 QLinearConv, 1 QGemm on integers; 1 ReduceMean in float; 3 conversions between floats"
    assert told in text
    assert "computes nothing on integers" in executed(Operators({}, {"Conv": 2}, 0), Target("openvino"))


def test_what_bits_were_chosen_from_and_what_they_bought_is_shown() -> None:
    page = render_html(dataclasses.replace(sample_report(), bits=mixed_bits()))
    text, figures = Page(page).text, figures_of(page)
    for words in ("What each width loses", "squared error of the model's output", "432 B of 1.73 KB", "+0.310 ms", "1.15 KB"):
        assert words in text.replace("\xa0", " ")
    stored = figures["bits"]["data"][1]
    assert stored["x"] == [432, 1152] and stored["y"] == ["conv1", "layer1.0.conv1"]
    weights, read = figures["bits-map"]["data"]
    assert weights["x"] == ["2 bits", "4 bits", "8 bits"] and read["x"] == ["4 bits", "8 bits"]
    marked = [[text.startswith("<b>") for text in row] for row in weights["text"]]
    assert marked == [[False, False, True], [False, True, False]]  # 8 bits of the first layer, 4 of the second
    assert weights["z"][0][0] == pytest.approx(-2) and weights["z"][1][2] == weights["zmin"]  # nothing lost: the palest


def test_bits_that_were_not_chosen_by_layer_have_no_map() -> None:
    rows = tuple(dataclasses.replace(row, sensitivity=None) for row in mixed_bits())
    page = render_html(dataclasses.replace(sample_report(), bits=rows))
    assert "bits-map" not in figures_of(page) and "What each width loses" not in Page(page).text


def test_layers_are_shown_with_their_noise_and_remedy_the_noisiest_first() -> None:
    layers = (
        NoisyLayer("block.conv2", "conv2d", 9.04, 8.96, 0.012, 1234, 'refine=("adaround",)'),
        NoisyLayer("conv1", "conv2d", 38.2, None, 0.0, 0),
    )
    page = render_html(dataclasses.replace(sample_report(), quantization=layers))
    text, figures = Page(page).text.replace("\xa0", " "), figures_of(page)
    for words in (
        "What quantization costs each layer",
        "9.0 dB",
        "1.2 %",
        "1,234",
        'refine=("adaround",)',
        "1 of 2 want mending",
    ):
        assert words in text
    bars, marks = figures["noise"]["data"]
    assert bars["y"] == ["block.conv2", "conv1"] and marks["x"] == [8.96]
    assert "What quantization costs" not in Page(render_html(sample_report())).text


def mixed_bits() -> tuple[LayerBits, ...]:
    """Two layers whose bits were chosen, of weights and of what they read."""
    read = (WidthLoss(4, 3e-3), WidthLoss(8, 2e-5))
    first = BitsSensitivity("noise", (WidthLoss(2, 1e-2), WidthLoss(4, 1e-3), WidthLoss(8, 4e-6)), read, 0.31)
    second = BitsSensitivity("noise", (WidthLoss(2, 4e-3), WidthLoss(4, 2e-4), WidthLoss(8, 0.0)), read)
    return (
        LayerBits("conv1", "conv2d", 432, 8, 8, "", LayerCost(432, 1728, 28_311_552, 452_984_832), first),
        LayerBits("layer1.0.conv1", "conv2d", 2304, 4, 4, "", LayerCost(1152, 9216, 37_748_736, 2_415_919_104), second),
    )


def test_a_step_with_mixed_bits_says_their_limits() -> None:
    assert steps_text(Recipe((Quantize(bits=MixedBits(4)),))) == "quantize bits on average 4"
    assert steps_text(Recipe((Quantize(bits=MixedBits(size="0.2x")),))) == "quantize bits in 0.2x"


def test_report_without_stages_widths_or_barriers_still_renders() -> None:
    report = sample_report()
    bare = dataclasses.replace(
        report, best=report.baseline, front=(report.baseline,), stages=(), widths=(), parity=(), barriers=(), environment={}
    )
    text = Page(render_html(bare)).text
    for words in (
        "No stage was run",
        "No layer lost a channel",
        "Parity was not checked",
        "Nothing stood in the way",
        "no difference",
    ):
        assert words in text


def test_recipe_is_shown_as_yaml_that_parses_back(met: str) -> None:
    report = sample_report()
    shown = re.search(r"<pre>(steps:.*?)</pre>", met, re.DOTALL)
    assert shown is not None
    assert Recipe.parse(shown.group(1)) == report.best.recipe


def _identity_file(path: str, kind: int = TensorProto.FLOAT) -> None:
    shape = ["batch", 3]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_five_lines_load_and_run_the_file_without_paredown(runtime: str, tmp_path: object) -> None:
    pytest.importorskip(runtime)
    path = f'{tmp_path}/it\'s "quoted".onnx'
    _identity_file(path)
    report = sample_report()
    best = dataclasses.replace(report.best, artifact=dataclasses.replace(report.best.artifact, path=path))
    snippet = load_snippet(dataclasses.replace(report, best=best, target=Target(runtime, threads=1)))  # type: ignore[arg-type]
    found: dict[str, object] = {}
    exec(snippet, found)
    assert len(snippet.strip().splitlines()) == 5
    assert "paredown" not in snippet
    np.testing.assert_array_equal(np.asarray(found["outputs"])[0], np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("kind", ["int32", "uint8", "float16", "double", "bool"])
def test_five_lines_feed_inputs_of_any_type(kind: str, tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "model.onnx")
    _identity_file(path, getattr(TensorProto, kind.upper()))
    report = sample_report()
    best = dataclasses.replace(report.best, artifact=dataclasses.replace(report.best.artifact, path=path))
    found: dict[str, object] = {}
    exec(load_snippet(dataclasses.replace(report, best=best)), found)
    assert np.asarray(found["outputs"])[0].dtype == np.dtype(kind)
