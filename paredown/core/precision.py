"""The config of quantization: kinds, bits, and what is done about the error."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pydantic

from paredown.core.errors import RecipeError
from paredown.core.fields import choice, count, names, number, within

QuantizeKind = Literal["static", "dynamic", "weight_only"]
Observer = Literal["minmax", "percentile", "moving_average", "mse", "kl"]
Refinement = Literal["smooth", "equalization", "adaround", "bias_correction"]
WeightMethod = Literal["nearest", "gptq", "awq", "hqq"]
WeightRange = Literal["auto", "full", "reduced"]
Scales = Literal["fixed", "lsq", "pact"]
LayerSensitivity = Literal["noise", "metric", "hessian"]

_FORBID = pydantic.ConfigDict(extra="forbid")
_WIDTHS = (8, 4, 3, 2)


@dataclass(frozen=True)
class MixedBits:
    """Bits chosen layer by layer: the smallest summed sensitivity under a limit of size, exactly, then verified by the metric.

    average: bits that a weight may take in the file, averaged over all weights. choices: of the bits of a layer, from 8, 4, 3, 2.
    sensitivity: what a layer loses at each width by itself: "noise" (squared error of the output, on training data), "metric"
    (drop of the task's metric, on validation data), "hessian" (curvature of the output's error times that of the weights).
    evaluations: how many assignments are measured by the task's metric, on validation data, in a local search that
    starts at the chosen one; 1 takes it as it is.
    """

    __pydantic_config__: ClassVar = _FORBID
    average: float
    choices: tuple[int, ...] = (2, 3, 4, 8)
    sensitivity: LayerSensitivity = "noise"
    evaluations: int = 20

    def __post_init__(self) -> None:
        given = self.choices
        if not isinstance(given, tuple | list) or len(set(given)) < max(len(given), 2) or not set(given) <= set(_WIDTHS):
            raise RecipeError(
                "choices must be at least two different ones of 8, 4, 3, 2", got=repr(given), remedy="write choices=(2, 4, 8)"
            )
        object.__setattr__(self, "choices", tuple(sorted(given)))
        within("average", self.average, self.choices[0], self.choices[-1])
        choice("sensitivity", self.sensitivity, LayerSensitivity)
        count("evaluations", self.evaluations)


@dataclass(frozen=True)
class Quantize:
    """Weights, and activations, on integer grids; batch norms are folded first. Three kinds:

    "static": integer weights, symmetric per channel, and integer activations, asymmetric per tensor, calibrated on training data.
    bits: of the weights: 8, 4, 3 or 2, or MixedBits; below 8 the first and the last layer keep 8, as is usual.
    activation_bits: 8 or 4. Weights below 8 bits are packed in the file and unpacked to 8 bits when it is loaded: they
    gain bytes, not time.
    "dynamic": int8 weights of linear, LSTM and GRU layers; linear layers round what they read by its own range as it comes.
    Reads no data. Recurrent layers are stored in int8 and computed in float, convolutions stay as they are.
    "weight_only": weights stored in `bits`, 8 or 4, packed, while the model computes in float; for models that are mostly
    linear layers and embeddings. One scale for `group` numbers of a row: 32, 64 or 128.
    embeddings: tables too. method: "nearest", "hqq" (neither reads data), "gptq", "awq" (both read `samples` training samples).

    scales, of static: what the distillation that follows trains besides the weights: "fixed" (nothing), "lsq" (every scale,
    arXiv:1902.08153), "pact" (the upper end of each activation, arXiv:1805.06085). Below 4 bits little is left without.
    observer, of static: "minmax"; "percentile", which clips what lies beyond `percentile` on either side; "moving_average", of
    the extremes of batches; "mse", the range with the smallest squared error; "kl", the one with the nearest distribution.
    refine, of static: what lowers the error further, done in this order whatever the order given: "smooth" (outliers of a
    transformer's activations move into its weights), "equalization" (of the ranges of neighbouring layers), "adaround" (learns
    which weights to round up; minutes), "bias_correction".
    samples: how many training samples calibrate (0: all of them); memory does not depend on it. Refinements hold some of them.
    weight_range, of 8 bits: "full" is [-127, 127]; "reduced" is [-63, 63], which can't saturate 16-bit sums on machines without
    VNNI; "auto" asks the machine. target: the runtime whose rules place the quantizers; None: the run's own,
    or, outside a run, a placement for both.
    protect: modules that stay in float.
    """

    __pydantic_config__: ClassVar = _FORBID
    kind: QuantizeKind = "static"
    bits: int | MixedBits = 8
    activation_bits: int = 8
    scales: Scales = "fixed"
    observer: Observer = "percentile"
    percentile: float = 99.99
    refine: tuple[Refinement, ...] = ()
    group: int = 32
    method: WeightMethod = "nearest"
    embeddings: bool = False
    samples: int = 1024
    weight_range: WeightRange = "auto"
    target: str | None = None
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choice("kind", self.kind, QuantizeKind)
        choice("scales", self.scales, Scales)
        choice("observer", self.observer, Observer)
        choice("method", self.method, WeightMethod)
        choice("weight_range", self.weight_range, WeightRange)
        names("refine", self.refine)
        for name in self.refine:
            choice("refine", name, Refinement)
        number("percentile", self.percentile)
        number("samples", self.samples)
        names("protect", self.protect)
        if not 50 < self.percentile <= 100:
            raise RecipeError("percentile must be in (50, 100]", got=self.percentile, remedy="99.99 is the usual choice")
        if self.samples < 0:
            raise RecipeError("samples must be at least 0", got=self.samples, remedy="write samples=0 to use them all")
        self._check_widths()
        self._check_unused()

    def _check_widths(self) -> None:
        allowed = _BITS[self.kind]
        mixed = isinstance(self.bits, MixedBits) and self.kind == "static"
        if not mixed and (isinstance(self.bits, bool) or self.bits not in allowed):
            raise RecipeError(
                f"bits of a {self.kind} step must be {_listed(allowed)}" + (", or MixedBits" if self.kind == "static" else ""),
                got=self.bits,
                remedy="leave bits out" if len(allowed) == 1 else f"write bits={allowed[1]}",
            )
        if isinstance(self.activation_bits, bool) or self.activation_bits not in (8, 4):
            raise RecipeError("activation_bits must be 8 or 4", got=self.activation_bits, remedy="8 loses the least")
        if isinstance(self.group, bool) or self.group not in _GROUPS:
            raise RecipeError("group must be 32, 64 or 128", got=self.group, remedy="32 is the most precise")

    def _check_unused(self) -> None:
        """A field that this kind doesn't read must stay at its default."""
        for name, kinds in _READ_BY.items():
            if self.kind not in kinds and getattr(self, name) != getattr(type(self), name):
                raise RecipeError(
                    f"{name} belongs to kind {' or '.join(kinds)}",
                    got=f"{name}={getattr(self, name)!r} with kind={self.kind!r}",
                    remedy=f'leave {name} out, or write kind="{kinds[0]}"',
                )


def _listed(values: tuple[int, ...]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


_BITS: dict[str, tuple[int, ...]] = {"static": _WIDTHS, "dynamic": (8,), "weight_only": (8, 4)}
_GROUPS = (32, 64, 128)
_READ_BY = {
    "activation_bits": ("static",), "scales": ("static",), "observer": ("static",), "percentile": ("static",),
    "refine": ("static",), "weight_range": ("static", "dynamic"), "group": ("weight_only",), "method": ("weight_only",),
    "embeddings": ("weight_only", "dynamic"),
}  # fmt: skip
