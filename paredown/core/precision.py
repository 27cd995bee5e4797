"""The config of quantization: kinds, bits, and what is done about the error."""

import operator
import types
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pydantic

from paredown.core.budget import parse_limit
from paredown.core.errors import RecipeError
from paredown.core.fields import choice, count, instance, names, number, positive, within
from paredown.core.target import Runtime

QuantizeKind = Literal["static", "dynamic", "weight_only", "palette", "fp16", "bf16"]
Observer = Literal["minmax", "percentile", "moving_average", "mse", "kl"]
Refinement = Literal["smooth", "equalization", "adaround", "brecq", "bias_correction"]
WeightMethod = Literal["nearest", "gptq", "awq", "hqq"]
WeightRange = Literal["auto", "full", "reduced"]
Scales = Literal["fixed", "lsq", "pact"]
LayerSensitivity = Literal["auto", "noise", "metric", "hessian"]

_FORBID = pydantic.ConfigDict(extra="forbid")
_WIDTHS = (8, 4, 3, 2)
_BY_LAYER = (32, 16, *_WIDTHS)


@dataclass(frozen=True)
class MixedBits:
    """Bits chosen layer by layer under one limit or several: the smallest summed sensitivity, exactly.

    average: bits that a weight may take in the file, averaged over all weights.
    size: bytes that the weights may take in the file, scales among them: "0.15x" of their float32, or "60 KB".
    latency: what may remain, "0.6x" of the float model or "3 ms", as measured in the target's runtime. There weights of 8 bits
    and fewer take the same time, so it limits how many layers stay in float (32), with the conversions around them.
    bops: bit operations (MACs times bits of weights times bits of activations), as a fraction of those of 8 and 8 bits.
    choices: of the bits of a layer's weights, from 32, 16, 8, 4, 3, 2; 32 is float, what it reads included. Layers of 16 bits
    compute in float.
    activations: of the bits of what a layer reads, from the same; layers that read the same tensor read it in the same
    bits. 32: it isn't rounded, and the layer computes in float, on weights that are stored in fewer bits. (): what
    `Activations(bits=)` says, for all layers.
    sensitivity: what a layer loses by its weights, and by what it reads, at each width by itself: "noise" (squared error of the
    output, on training data), "metric" (drop of the task's metric, on validation data), "hessian" (curvature of the output's
    error times the squared error, on training data), "auto" (noise and Hessian: of what they lead to, that which the metric
    prefers; at a tie, and with one evaluation, that whose outputs are nearer to the float model's; noise alone where no gradient
    gets to some weight).
    evaluations: how many assignments are measured by the task's metric, on validation data, in a local search that starts at the
    chosen one and moves where another is significantly better; 1 takes it as it is.
    method: "exact"; "rule" is a baseline to beat: the layers with the most MACs get the most bits, the rest the fewest.
    """

    __pydantic_config__: ClassVar = _FORBID
    average: float | None = None
    size: str | None = None
    latency: str | None = None
    bops: float | None = None
    choices: tuple[int, ...] = (2, 3, 4, 8)
    activations: tuple[int, ...] = ()
    sensitivity: LayerSensitivity = "auto"
    evaluations: int = 20
    method: Literal["exact", "rule"] = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", _ascending("choices", self.choices))
        if self.activations != ():
            object.__setattr__(self, "activations", _ascending("activations", self.activations))
        if (self.average, self.size, self.latency, self.bops) == (None,) * 4:
            raise RecipeError(
                "MixedBits needs a limit: average, size, latency or bops", got="none", remedy="write MixedBits(average=4)"
            )
        if self.average is not None:
            within("average", self.average, self.choices[0], self.choices[-1])
        for axis in ("size", "latency"):
            if getattr(self, axis) is not None:
                parse_limit(axis, getattr(self, axis))
        if self.bops is not None:
            positive("bops", self.bops)
        choice("sensitivity", self.sensitivity, LayerSensitivity)
        count("evaluations", self.evaluations)
        choice("method", self.method, Literal["exact", "rule"])


def _ascending(name: str, given: object) -> tuple[int, ...]:
    widths = [*given] if isinstance(given, tuple | list) and all(type(each) is int for each in given) else []
    if len(set(widths)) < max(len(widths), 2) or not set(widths) <= {*_BY_LAYER}:
        raise RecipeError(
            f"{name} must be at least two different ones of 32, 16, 8, 4, 3, 2", got=repr(given), remedy=f"write {name}=(2, 4, 8)"
        )
    return tuple(sorted(widths))


@dataclass(frozen=True)
class Weights:
    """How weights are put on their grids, whatever the bits.

    symmetric, of "static": False puts each channel between its own extremes, on an unsigned grid with a zero point.
    two_sided, of "static": what is above 0 and what is below have scales of their own, each between 0 and its own extreme. The
    layers are stored in few bits and computed in float: no integer operator of ONNX has two scales.
    power_of_two, of "static": scales are powers of two.
    range, of 8 symmetric bits: "full" is [-127, 127]; "reduced" is [-63, 63], which can't saturate 16-bit sums on machines
    without VNNI; "auto" asks the machine.
    method, of "weight_only": "nearest", "hqq" (neither reads data), "gptq", "awq" (both read training samples).
    group, of "weight_only": numbers of a row that share a scale: 32, 64 or 128.
    embeddings: tables too: of "static" and "dynamic" by rows in 8 bits, of "weight_only" and "palette" in the step's `bits`. A
    table that a quantized head reads as well always is, as the head is; one that anything else reads, or that has a max_norm,
    is unpacked in every call. What is indexed without an embedding operator, and nn.EmbeddingBag, stays in float.
    """

    __pydantic_config__: ClassVar = _FORBID
    symmetric: bool = True
    two_sided: bool = False
    power_of_two: bool = False
    range: WeightRange = "auto"
    method: WeightMethod = "nearest"
    group: int = 32
    embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("symmetric", "two_sided", "power_of_two"):
            instance(name, getattr(self, name), bool)
        if self.two_sided and not self.symmetric:
            raise RecipeError(
                "two-sided weights have no zero point", got="symmetric=False and two_sided=True", remedy="leave one of them out"
            )
        if not self.symmetric and self.range == "reduced":
            raise RecipeError(
                "the reduced range is one of symmetric weights", got="symmetric=False and range='reduced'",
                remedy="leave one of them out",
            )  # fmt: skip
        if self.two_sided and self.range == "reduced":
            raise RecipeError(
                "two-sided weights are computed in float, where no sum saturates", got="range='reduced'", remedy="leave range out"
            )
        choice("range", self.range, WeightRange)
        choice("method", self.method, WeightMethod)
        instance("embeddings", self.embeddings, bool)
        if isinstance(self.group, bool) or self.group not in _GROUPS:
            raise RecipeError("group must be 32, 64 or 128", got=self.group, remedy="32 is the most precise")


@dataclass(frozen=True)
class Activations:
    """How activations are put on their grids, per tensor, in a "static" step: between their extremes with a zero point, or
    two_sided: what is above 0 and what is below with scales of their own; what reads them then computes in float.

    power_of_two: scales are powers of two.
    bits: 8, 4, 3 or 2; by layer where MixedBits(activations=) says so.
    observer, of the range that calibration finds: "mse", the range with the smallest squared error, which keeps the few large
    numbers that a transformer lives by; "minmax"; "percentile", which clips what lies beyond `percentile` on either side;
    "moving_average", of the extremes of batches; "kl", the range with the nearest distribution. Tensors of more than 8 bits
    keep their extremes.
    percentile, of "percentile" alone: 99.99 where it isn't given.
    """

    __pydantic_config__: ClassVar = _FORBID
    bits: int = 8
    observer: Observer = "mse"
    percentile: float | None = None
    two_sided: bool = False
    power_of_two: bool = False

    def __post_init__(self) -> None:
        for name in ("two_sided", "power_of_two"):
            instance(name, getattr(self, name), bool)
        choice("observer", self.observer, Observer)
        if type(self.bits) is not int or self.bits not in _WIDTHS:
            raise RecipeError("bits of activations must be 8, 4, 3 or 2", got=self.bits, remedy="8 loses the least")
        if self.percentile is None:
            return
        number("percentile", self.percentile)
        if not 50 < self.percentile <= 100:
            raise RecipeError("percentile must be in (50, 100]", got=self.percentile, remedy="99.99 is the usual choice")
        if self.observer != "percentile":
            raise RecipeError(
                "percentile belongs to the observer of that name",
                got=f"observer={self.observer!r} and percentile={self.percentile}",
                remedy='write observer="percentile", or leave percentile out',
            )


@dataclass(frozen=True)
class Quantize:
    """Weights, and activations, in fewer bits, mostly on integer grids; batch norms are folded first. The kinds:

    "static": integer weights, one grid per channel, and integer activations, calibrated on training data.
    bits: of the weights: 8, 4, 3 or 2, or MixedBits; below 8 the first and the last layer keep 8, as is usual. Weights below
    8 bits are packed in the file and unpacked to 8 bits when it is loaded: they gain bytes, not time.
    "dynamic": int8 weights of linear, LSTM and GRU layers; linear layers round what they read by its own range as it comes,
    which samples of one batch share: one at a time loses less. Reads no data. Recurrent layers are stored in int8 and
    computed in float, convolutions stay as they are.
    "weight_only": weights stored in `bits`, 8 or 4, packed, while the model computes in float, for models that are mostly linear
    layers and embeddings. It gains bytes, not time. `paredown.load` runs such a file as it was measured; ONNX Runtime left to
    itself rounds what these layers read to 8 bits (session option "session.qdq_matmulnbits_accuracy_level": "1" is float).
    "palette": weights stored as indices of `bits`, 8 or 4, into a codebook of the layer's own, found by k-means. Reads no data.
    "fp16", "bf16": weights, embeddings among them, stored as 16-bit floats. Reads no data; `bits` isn't read.
    Files of these three take the time of fp32: runtimes convert the weights when they load them.

    weights, activations: how they get their grids.
    scales, of static: what the distillation that follows trains besides the weights: "fixed" (nothing), "lsq" (every scale,
    arXiv:1902.08153), "pact" (the upper end of each activation, arXiv:1805.06085). Below 4 bits little is left without.
    refine, of static: what lowers the error further, done in this order whatever the order given: "smooth" (outliers of a
    transformer's activations move into its weights), "equalization" (of the ranges of neighbouring layers), "adaround" (learns
    which weights to round up, layer by layer; minutes) or "brecq" (the same for each residual block at once), "bias_correction"
    (kept where the output comes nearer to the float model's).
    samples: how many training samples calibrate (0: all of them); memory does not depend on it. Refinements hold some of them.
    target: the runtime whose rules place the quantizers; None: the run's own, or, outside a run, a placement for both.
    protect: modules that stay in float.
    """

    __pydantic_config__: ClassVar = _FORBID
    kind: QuantizeKind = "static"
    bits: int | MixedBits = 8
    weights: Weights = field(default_factory=Weights)
    activations: Activations = field(default_factory=Activations)
    scales: Scales = "fixed"
    refine: tuple[Refinement, ...] = ()
    samples: int = 1024
    target: str | None = None
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choice("kind", self.kind, QuantizeKind)
        instance("weights", self.weights, Weights)
        instance("activations", self.activations, Activations)
        choice("scales", self.scales, Scales)
        names("refine", self.refine, of="refinements", example="bias_correction")
        for name in self.refine:
            choice("refine", name, Refinement)
        if {"adaround", "brecq"} <= set(self.refine):
            raise RecipeError("rounding is learned once", got="adaround and brecq", remedy="leave one of them out")
        self._check_two_sided()
        if self.target is not None:
            choice("target", self.target, Runtime)
        names("protect", self.protect)
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 0:
            got, remedy = repr(self.samples), "write samples=0 to use them all"
            raise RecipeError("samples must be a whole number of at least 0", got=got, remedy=remedy)
        self._check_bits()
        self._check_unused()

    def _check_two_sided(self) -> None:
        """What learns on a grid knows one scale for both signs; two scales are stored in 8 bits at most."""
        wide = isinstance(self.bits, MixedBits) and 16 in (*self.bits.choices, *self.bits.activations)
        if wide and (self.weights.two_sided or self.activations.two_sided):
            raise RecipeError(
                "two-sided grids have at most 8 bits", got="16 among the choices with two_sided=True", remedy="leave 16 out"
            )
        learned = {"adaround", "brecq"} & set(self.refine)
        if self.scales != "fixed" and (self.weights.two_sided or self.activations.two_sided):
            raise RecipeError(
                "scales are learned on one-sided grids", got=f'scales="{self.scales}" with two_sided=True',
                remedy='write scales="fixed": a distill step still trains the weights',
            )  # fmt: skip
        if learned and self.weights.two_sided:
            raise RecipeError(
                "rounding is learned on one-sided grids", got=f"{min(learned)} with two_sided=True",
                remedy=f"leave {min(learned)} out of refine, or two_sided out of weights",
            )  # fmt: skip

    def _check_bits(self) -> None:
        allowed = _BITS.get(self.kind, (self.bits,))
        mixed = isinstance(self.bits, MixedBits) and self.kind == "static"
        if not mixed and (isinstance(self.bits, bool | float) or self.bits not in allowed):
            raise RecipeError(
                f"bits of a {self.kind} step must be {_listed(allowed)}" + (", or MixedBits" if self.kind == "static" else ""),
                got=self.bits,
                remedy="leave bits out" if len(allowed) == 1 else f"write bits={allowed[1]}",
            )
        if isinstance(self.bits, MixedBits) and self.bits.activations and self.activations.bits != 8:
            raise RecipeError(
                "bits of activations are chosen by layer, or the same for all",
                got=f"activations={self.bits.activations} and Activations(bits={self.activations.bits})",
                remedy="leave one of them out",
            )

    def _check_unused(self) -> None:
        """A field that this kind doesn't read must stay at its default."""
        for path, kinds in _READ_BY.items():
            value, default = (operator.attrgetter(path)(config) for config in (self, _DEFAULTS))
            if self.kind not in kinds and value != default:
                raise RecipeError(
                    f"{path} belongs to kind {' or '.join(kinds)}",
                    got=f"{path}={value!r} with kind={self.kind!r}",
                    remedy=f'leave {path} out, or write kind="{kinds[0]}"',
                )


def _listed(values: tuple[object, ...]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


_BITS: dict[str, tuple[object, ...]] = {"static": _WIDTHS, "dynamic": (8,), "weight_only": (8, 4), "palette": (8, 4)}
_GROUPS = (32, 64, 128)
_READ_BY = {
    "bits": ("static", "dynamic", "weight_only", "palette"),
    "activations": ("static",), "scales": ("static",), "refine": ("static",), "weights.symmetric": ("static",),
    "weights.two_sided": ("static",), "weights.power_of_two": ("static",),
    "weights.range": ("static", "dynamic"), "weights.group": ("weight_only",), "weights.method": ("weight_only",),
    "weights.embeddings": ("static", "weight_only", "dynamic", "palette"),
}  # fmt: skip
_DEFAULTS = types.SimpleNamespace(bits=8, weights=Weights(), activations=Activations(), scales="fixed", refine=())
