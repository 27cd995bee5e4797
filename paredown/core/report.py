"""What a run found: baseline, stages with the gate's verdicts, the front, the best candidate. Data only; `render` draws it."""

import dataclasses
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import pydantic

from paredown.core.artifact import Candidate
from paredown.core.budget import Budget
from paredown.core.errors import ArtifactError, ParedownError
from paredown.core.measurement import Measurement
from paredown.core.page import write_page
from paredown.core.recipe import Recipe
from paredown.core.target import Target

Masked: TypeAlias = Literal["channels", "weights"]
_T = TypeVar("_T")
_FORBID = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Width:
    """Channels of one module before and after. `dimension`: "out" or "in"."""

    __pydantic_config__: ClassVar = _FORBID
    module: str
    dimension: str
    before: int
    after: int


@dataclass(frozen=True)
class WidthLoss:
    """What is lost with so many bits; 32 is float. In the unit of the `BitsSensitivity` that it stands in."""

    __pydantic_config__: ClassVar = _FORBID
    bits: int
    loss: float


@dataclass(frozen=True)
class BitsSensitivity:
    """What one layer loses at each width, everything else in float: what bits by layer were chosen from.

    measure: "noise" (squared error of the model's output, relative to the output), "metric" (drop, in the metric's units),
    "hessian" (predicted rise of half the squared distance of the output). weights, activations: of the layer's weights, and of
    what it reads, ascending; activations is empty where they weren't chosen, and the same for layers that read the same tensor.
    float_ms: what the model takes more with the layer in float; None where no latency was measured.
    """

    __pydantic_config__: ClassVar = _FORBID
    measure: str
    weights: tuple[WidthLoss, ...]
    activations: tuple[WidthLoss, ...] = ()
    float_ms: float | None = None


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs as it is, and in float. Bytes of its weights as stored, scales among them; bit operations of one sample
    (MACs times bits of weights times bits of what it reads).
    """

    __pydantic_config__: ClassVar = _FORBID
    size_bytes: int
    size_bytes_float: int
    bops: int
    bops_float: int


@dataclass(frozen=True)
class LayerBits:
    """What a layer's weights are stored in, and what it computes in, in a quantized model. 32 bits are float.

    operator: "conv2d". parameters: numbers in its weights. activation_bits: of what it reads. note: why it doesn't compute in
    integers; empty where it does. cost: what its bits bought. sensitivity: where bits were chosen layer by layer.
    """

    __pydantic_config__: ClassVar = _FORBID
    module: str
    operator: str
    parameters: int
    weight_bits: int
    activation_bits: int
    note: str = ""
    cost: LayerCost | None = None
    sensitivity: BitsSensitivity | None = None


@dataclass(frozen=True)
class Operators:
    """What a runtime makes of a file, by its own account: {operator, in its words: how many}.

    int8: computed on integers. floating: the others. conversions: from floats to integers and back that were left over.
    """

    __pydantic_config__: ClassVar = _FORBID
    int8: dict[str, int]
    floating: dict[str, int]
    conversions: int


@dataclass(frozen=True)
class Parity:
    """A file against its torch model at one batch size. kind: what error and tolerance are: "max |difference| / max |y|",
    "relative L2", or, of a quantized file whose few inputs weren't enough to judge it, "relative L2 over 64 samples".
    """

    __pydantic_config__: ClassVar = _FORBID
    candidate: str
    batch: int
    kind: str
    error: float
    tolerance: float


@dataclass(frozen=True)
class Barrier:
    """A part of the model that can't be pruned: the operator, where it stands in the user's code, and why."""

    __pydantic_config__: ClassVar = _FORBID
    operator: str
    where: str
    reason: str


@dataclass(frozen=True)
class GroupRow:
    """A dependency group. name: of the module that gives it its name. size: channels. macs_share: of the model's MACs that
    its channels take part in, in [0, 1]; groups overlap, so the shares of a model don't sum to 1.
    """

    __pydantic_config__: ClassVar = _FORBID
    name: str
    size: int
    macs_share: float


@dataclass(frozen=True)
class SensitivityCurve:
    """How much worse the model gets as more of one dependency group, or of one layer's weights, is masked.

    ratios: fractions masked, ascending; the first is 0, the unchanged model. metric, loss: measured at each ratio.
    estimate: the loss as first derivatives predict it. All on the same samples, the first `samples` of the validation split.
    masked: "channels" of a group, or single "weights" of a layer. group: its name. size: how many of them it has.
    """

    __pydantic_config__: ClassVar = _FORBID
    group: str
    size: int
    ratios: tuple[float, ...]
    metric: tuple[float, ...]
    loss: tuple[float, ...]
    estimate: tuple[float, ...]
    higher_is_better: bool = True
    samples: int = 0
    masked: Masked = "channels"

    @property
    def drops(self) -> tuple[float, ...]:
        """How much worse the metric is at each ratio, in its own units; positive is worse."""
        sign = 1.0 if self.higher_is_better else -1.0
        return tuple(sign * (self.metric[0] - value) for value in self.metric)


@dataclass(frozen=True)
class NoisyLayer:
    """What quantization costs one layer by itself, on what the float model gives it.

    simulated_db, runtime_db: signal to quantization noise of its output, in torch and in the runtime (None: the file has no
    operator of its own for it). clipped: fraction of what it reads that lies beyond the grid. saturated: outputs of the runtime
    that rounding doesn't explain. remedy: what to write in the quantize step; empty where the layer is fine.
    """

    __pydantic_config__: ClassVar = _FORBID
    module: str
    operator: str
    simulated_db: float
    runtime_db: float | None
    clipped: float
    saturated: int
    remedy: str = ""


@dataclass(frozen=True)
class Profile:
    """What `analyze` found of a task, before anything is changed.

    quality: the metric on validation data. latency: in ms, of the exported fp32 file in the target's runtime, whose size is
    `size_bytes`. macs: for one sample. groups: what can be pruned; barriers: what can't. seconds: what the analysis took.
    sensitivity: one curve per group and one per layer, where it was asked for. quantization: likewise, one row per layer, the
    noisiest first; operators: what the runtime makes of the quantized file.
    """

    __pydantic_config__: ClassVar = _FORBID
    task: str
    target: Target
    metric: str
    quality: Measurement
    latency: Measurement
    size_bytes: int
    macs: int
    parameters: int
    groups: tuple[GroupRow, ...]
    barriers: tuple[Barrier, ...]
    warnings: tuple[str, ...]
    seconds: float
    sensitivity: tuple[SensitivityCurve, ...] = ()
    quantization: tuple[NoisyLayer, ...] = ()
    operators: Operators | None = None

    def to_json(self) -> str:
        """The whole profile as JSON; `Profile.from_json` reads it back equal."""
        return pydantic.TypeAdapter(Profile).dump_json(self, indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Profile":
        """Raises ArtifactError where the text is not a profile of this version."""
        return _read(Profile, text, "the text must be a profile", "run `paredown doctor` again")


@dataclass(frozen=True)
class Comparison:
    """One file against another, both timed in turn in one process. latency_ratio: of the file to the other, paired.

    difference: of their outputs on the same inputs, max |difference| / max |y|; agreement: share of samples whose largest
    output stands at the same place. None where their outputs can't be compared.
    """

    __pydantic_config__: ClassVar = _FORBID
    file: str
    against: str
    target: Target
    latency: Measurement
    latency_against: Measurement
    latency_ratio: Measurement
    size_bytes: int
    size_bytes_against: int
    difference: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Stage:
    """A structural step with its recovery, and what the gate said of it.

    latency_ratio: against the stage before that was kept, paired. size_ratio: likewise.
    reason: why it was kept or rolled back, in words. seconds: what it took.
    compressed_ratio: of the files packed by gzip, likewise, where the stage makes weights zero; None elsewhere.
    folds: of each of its cuts that was chosen by learned gates, the mean objective with gates, and once they were folded.
    """

    __pydantic_config__: ClassVar = _FORBID
    name: str
    recipe: Recipe
    candidate: Candidate
    kept: bool
    reason: str
    latency_ratio: Measurement
    size_ratio: float
    seconds: float
    compressed_ratio: float | None = None
    folds: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Report:
    """One run. met: whether `best` is within the budget; else `best` is the nearest point and `binding` names what binds.

    front: the Pareto-optimal candidates in drop, latency and size, the baseline among them. environment: machine, versions.
    sensitivity: of the unchanged model, one curve per dependency group and one per layer, where it was asked for.
    bits: of the result, layer by layer, where it is quantized. quantization: likewise, what that costs each layer on an integer
    grid by itself, the noisiest first. operators: of the result's file in the target's runtime, where it is quantized.
    """

    __pydantic_config__: ClassVar = _FORBID
    task: str
    metric: str
    budget: Budget
    target: Target
    met: bool
    binding: tuple[str, ...]
    baseline: Candidate
    best: Candidate
    front: tuple[Candidate, ...]
    stages: tuple[Stage, ...]
    widths: tuple[Width, ...]
    parity: tuple[Parity, ...]
    barriers: tuple[Barrier, ...]
    environment: dict[str, str]
    seed: int
    seconds: float
    sensitivity: tuple[SensitivityCurve, ...] = ()
    bits: tuple[LayerBits, ...] = ()
    quantization: tuple[NoisyLayer, ...] = ()
    operators: Operators | None = None
    render: Callable[["Report"], str] | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> str:
        """The whole report as JSON; `Report.from_json` reads it back equal."""
        return pydantic.TypeAdapter(Report).dump_json(self, indent=2, exclude=_EXCLUDE).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Report":
        """Raises ArtifactError where the text is not a report of this version."""
        return _read(Report, text, "report.json must be a report", "run `paredown compress` again")

    def save_html(self, path: str | pathlib.Path) -> pathlib.Path:
        """One self-contained page that opens offline, whole or not at all. Raises OutputError where it can't be written."""
        if self.render is None:
            raise ArtifactError("a report read from a file has no renderer", remedy="run `paredown report DIR`")
        return write_page(path, self.render(self))

    def with_renderer(self, render: Callable[["Report"], str]) -> "Report":
        return dataclasses.replace(self, render=render)


def _read(cls: type[_T], text: str | bytes, what: str, remedy: str) -> _T:
    """`text` as a `cls`; ArtifactError names the first field that doesn't fit."""
    try:
        return pydantic.TypeAdapter(cls).validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{what} of paredown", got=f"{where}: {first['msg']}".removeprefix(": "), remedy=remedy) from None
    except ParedownError as error:
        raise ArtifactError(f"{what} of paredown", got=error.rule, remedy=remedy) from None


_CANDIDATE: Any = {"load"}
_EXCLUDE: Any = {
    "render": True,
    "baseline": _CANDIDATE,
    "best": _CANDIDATE,
    "front": {"__all__": _CANDIDATE},
    "stages": {"__all__": {"candidate": _CANDIDATE}},
}
