"""What a report says, in words and formatted numbers: the verdict on each axis, and how sure it is. Both renderers speak it."""

from dataclasses import dataclass
from typing import Any

from paredown.core.artifact import Candidate
from paredown.core.budget import Axis
from paredown.core.measurement import Measurement
from paredown.core.recipe import Recipe
from paredown.core.report import Report, Stage
from paredown.core.steps import Sparsify
from paredown.render import numbers

_BUSY = 0.1  # cores: what a machine with nothing to do spends on itself is less


@dataclass(frozen=True)
class Finding:
    """One axis of the budget. within: None where the budget doesn't name the axis.

    value: the headline, a difference or a ratio to the baseline. detail: in absolute units. bound: how sure. limit: the budget's.
    """

    axis: str
    title: str
    value: str
    detail: str
    bound: str
    limit: str
    within: bool | None


def findings(report: Report) -> tuple[Finding, Finding, Finding]:
    """The drop, the latency and the size of the result, each beside its budget."""
    return _drop(report), _latency(report), _size(report)


def verdict(report: Report) -> str:
    """ "The budget is met" or "The budget is not met"."""
    return "The budget is met" if report.met else "The budget is not met"


def relative(drop: float, baseline: float) -> str:
    """A drop as a share of the baseline: "0.44 % of the baseline"; empty where the baseline is 0."""
    return f"{numbers.percent(abs(drop) / abs(baseline))} of the baseline" if baseline else ""


def certainty(report: Report) -> tuple[str, ...]:
    """How sure the verdict is, in plain sentences: samples, the one-sided bound, pairs, what was not measured."""
    return (_sure_of_drop(report), *_sure_of_test(report), _sure_of_latency(report))


def busy(latency: Measurement) -> str:
    """A warning where other processes ran while a latency was timed; empty where the machine was quiet."""
    if latency.load < _BUSY:
        return ""
    return (
        f"other processes kept {latency.load:.1f} cores busy while latency was timed: it is theirs too; measure again when the "
        "machine is quiet"
    )


def binding(report: Report) -> tuple[str, ...]:
    """What keeps the result from the budget, each axis with its numbers in our words; empty where it is met."""
    by_axis = {finding.axis: finding for finding in findings(report)}
    return tuple(_bind(text, by_axis.get(text.partition(":")[0])) for text in report.binding) if not report.met else ()


def limit_text(report: Report, axis: Axis) -> str:
    """The budget on latency or size, as written and in the other unit: "0.6x = 1.93 ms"."""
    limit = report.budget.limit(axis)
    if limit is None:
        return "no limit"
    base = report.baseline.latency.value if axis == "latency" else report.baseline.artifact.size_bytes
    absolute = (numbers.milliseconds if axis == "latency" else numbers.size)(limit.absolute(base))
    return f"at most {numbers.limit(limit.ratio(base))} = {absolute}"


def drop_limit_text(report: Report) -> str:
    """The budget on the drop, in metric units and relative."""
    base = report.baseline.quality.value
    limit = report.budget.drop_limit(base)
    share = relative(limit, base)
    return f"at most {numbers.difference(limit, report.metric)} worse" + (f" ({share})" if share else "")


def built_on(report: Report, stage: Stage) -> str:
    """ "the baseline", or "stage 2"."""
    before = predecessor(report, stage)
    return next((f"stage {i}" for i, other in enumerate(report.stages, 1) if other.candidate is before), "the baseline")


def predecessor(report: Report, stage: Stage) -> Candidate:
    """What a stage was built on: the candidate whose recipe is the stage's without its last part."""
    before = Recipe(tuple(step for part in stage.recipe.stages()[:-1] for step in part.steps))
    return next((other.candidate for other in report.stages if other.candidate.recipe == before), report.baseline)


def why(stage: Stage) -> str:
    """The gate's reason without the verdict that stands beside it."""
    return stage.reason.removeprefix("kept: ").removeprefix("rolled back: ")


def remarks(stage: Stage) -> tuple[str, ...]:
    """What is to be known of a stage besides the gate's reason."""
    return tuple(filter(None, (_sparse_text(stage), _folds_text(stage))))


def _folds_text(stage: Stage) -> str:
    """What folding learned gates cost; gates that don't depend on the sample fold exactly."""
    pairs = ", ".join(f"{numbers.significant(before, 4)} → {numbers.significant(after, 4)}" for before, after in stage.folds)
    return pairs and f"loss with its gates, and with them folded into the weights: {pairs}"


def _sparse_text(stage: Stage) -> str:
    """What zeros in place are worth, in a stage that makes them; empty elsewhere."""
    if not any(isinstance(step, Sparsify) for step in stage.recipe.stages()[-1].steps):
        return ""
    packed = "" if stage.compressed_ratio is None else f": {numbers.ratio(stage.compressed_ratio)} packed by gzip"
    return f"zeros in place: same speed, since no runtime here skips them; smaller only as compressed bytes{packed}"


def steps_text(recipe: Recipe) -> str:
    """A stage's own steps with what they set: "prune ratio 0.25, distill"; of a whole recipe, the last stage."""
    last = recipe.stages()[-1].to_dict()["steps"] if recipe.steps else []
    return ", ".join(" ".join([step["step"], *_set(step)]) for step in last)


def _set(step: dict[str, Any]) -> list[str]:
    nested = {f"{name} {field}": v for name in _PARTS for field, v in step.get(name, {}).items()}
    mixed = {f"{name} {said}": value[of] for name, value in step.items() for of, said in _LIMITS.items() if _is_mixed(value, of)}
    plain = step | nested | mixed
    return [f"{name} {value}" for name, value in plain.items() if name != "step" and isinstance(value, str | int | float)]


_PARTS = ("weights", "activations")  # of a quantize step, whose own fields are told


_LIMITS = {"average": "on average", "size": "in", "latency": "by layer, latency", "bops": "by layer, bit operations"}


def _is_mixed(value: object, limit: str) -> bool:
    """Whether a step's field says that something is chosen layer by layer, within this limit: MixedBits."""
    return isinstance(value, dict) and value.get(limit) is not None


def level(report: Report) -> str:
    """The confidence of the budget's bounds: "95 %"."""
    return f"{100 * report.budget.confidence:g} %"


def _bind(text: str, finding: Finding | None) -> str:
    if finding is None:
        return text
    return f"{finding.title}: {finding.value}, {finding.bound}; the budget says {finding.limit}".replace(", ;", ";")


def _drop(report: Report) -> Finding:
    best, base = report.best, report.baseline.quality.value
    upper = best.drop.upper
    share = relative(best.drop.value, base)
    return Finding(
        axis="drop",
        title=report.metric,
        value=numbers.worse(best.drop.value, report.metric),
        detail=f"{numbers.quality(base, report.metric)} → {numbers.quality(best.quality.value, report.metric)}"
        + (f", {share}" if share and best.drop.value else ""),
        bound=f"{numbers.at_worst(upper, report.metric)}, with {level(report)} confidence",
        limit=drop_limit_text(report),
        within=_within(report, "drop"),
    )


def _latency(report: Report) -> Finding:
    best, base = report.best, report.baseline.latency.value
    limit = report.budget.limit("latency")
    low_high = numbers.interval(best.latency_ratio, "ratio")
    return Finding(
        axis="latency",
        title="latency",
        value=numbers.ratio(best.latency_ratio.value),
        detail=f"{numbers.milliseconds(base)} → {numbers.milliseconds(best.latency.value)}",
        bound=f"{low_high} at {100 * best.latency_ratio.confidence:g} %, {best.latency_ratio.n:,} pairs" if low_high else "",
        limit=limit_text(report, "latency"),
        within=None if limit is None else _within(report, "latency"),
    )


def _size(report: Report) -> Finding:
    best, base, limit = report.best, report.baseline.artifact.size_bytes, report.budget.limit("size")
    return Finding(
        axis="size",
        title="size of the file",
        value=numbers.ratio(best.size_ratio),
        detail=f"{numbers.size(base)} → {numbers.size(best.artifact.size_bytes)}",
        bound="exact: bytes on disk",
        limit=limit_text(report, "size"),
        within=None if limit is None else _within(report, "size"),
    )


def _within(report: Report, axis: str) -> bool:
    """The gate's word: it holds each limit against the bad end of the interval, and names what doesn't fit."""
    return report.met or not any(text.partition(":")[0] == axis for text in report.binding)


def _sure_of_drop(report: Report) -> str:
    best, metric = report.best, report.metric
    upper = best.drop.upper
    limit = numbers.difference(report.budget.drop_limit(report.baseline.quality.value), metric)
    return (
        f"On {best.drop.n:,} validation samples, each read by both files, the result is "
        f"{numbers.worse(best.drop.value, metric)} than the baseline. This is one sample. "
        f"The one-sided {level(report)} bound says: on the data these samples were drawn from, the result is "
        f"{numbers.at_worst(upper, metric)}; the budget allows {limit}. A bound made this way is too optimistic "
        f"in at most {100 - 100 * report.budget.confidence:.3g} of 100 such measurements."
    ).replace("no difference than", "no different from")


def _sure_of_test(report: Report) -> tuple[str, ...]:
    best = report.best
    if best.test_drop is None or best.test_quality is None:
        return ("There is no test set: this rests on validation data, on which every choice was made too. Expect a little less.",)
    upper = "" if best.test_drop.high is None else f", {numbers.at_worst(best.test_drop.high, report.metric)}"
    return (
        f"Every choice was made on validation data. The {best.test_drop.n:,} test samples were read once, for this report: "
        f"{numbers.quality(best.test_quality.value, report.metric)}, {numbers.worse(best.test_drop.value, report.metric)}"
        f"{upper} (same kind of bound).",
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _sure_of_latency(report: Report) -> str:
    measured = report.best.latency_ratio
    spread = numbers.interval(measured, "ratio")
    sure = f", {spread} at {100 * measured.confidence:g} %" if spread else ""
    return (
        f"Latency was timed on the shipped file in {report.target}: {measured.n:,} pairs, baseline and result in turn "
        f"on one machine, median ratio {numbers.ratio(measured.value)}{sure}. "
        f"Another machine gives other times: run paredown measure there. {_sentence(busy(measured))}"
    ).rstrip()
