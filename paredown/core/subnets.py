"""What a search over the subnets of a user's own model is asked for, as frozen data that checks itself."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from paredown.core.budget import Limit, parse_limit
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.fields import choice, count, instance
from paredown.core.steps import Criterion, Distill, Precision, Widths
from paredown.core.training import Training

Varies = Literal["depth", "kernel"]
_SUPERNET = Training(effort=Effort(10, "epochs"))


@dataclass(frozen=True)
class SubnetSpace:
    """What of the model may vary. widths: that a dependency group may have; varies: what else may, residual branches (depth) and
    sides of kernels. importance: by which channels are sorted, once.
    """

    widths: Widths = field(default_factory=lambda: Widths(floor=0.25))
    varies: tuple[Varies, ...] = ("depth", "kernel")
    importance: Criterion = "taylor"

    def __post_init__(self) -> None:
        instance("widths", self.widths, Widths)
        if self.widths.ceiling < 1 or self.widths.ceilings:
            got, remedy = "a ceiling", "leave it out, or prune to it first"
            raise RecipeError("the largest subnet is the model itself", got=got, remedy=remedy)
        choice("importance", self.importance, Criterion)
        unknown = set(self.varies) - set(get_args(Varies)) if isinstance(self.varies, tuple | list) else {self.varies}
        if unknown:
            raise RecipeError("varies names depth and kernel", got=sorted(map(str, unknown))[0], remedy='write varies=("depth",)')


@dataclass(frozen=True)
class Subnets:
    """latency or macs: what a subnet may cost, at most one of them ("0.6x", "3 ms"; "0.5x", "20 M"). Without either a front of
    the metric against MACs is looked for.

    precision: of the files that subnets are judged by; "int8": metric and latency are those after quantization, against the
    float original. What comes back is a float module all the same. supernet: how the shared weights are trained.
    evaluations: subnets that are looked at with inherited weights. keep: how many of the best are then recovered, as `recover`
    says; None: as a planned run of `compress` recovers a cut, a convnet by `Distill.combined()`.
    """

    latency: str | None = None
    macs: str | None = None
    precision: Precision = "fp32"
    space: SubnetSpace = field(default_factory=SubnetSpace)
    supernet: Training = field(default_factory=lambda: _SUPERNET)
    evaluations: int = 100
    keep: int = 3
    recover: Distill | None = None

    def __post_init__(self) -> None:
        if self.latency is not None and self.macs is not None:
            raise RecipeError(
                "a search over subnets has one limit", got=f"latency={self.latency!r}, macs={self.macs!r}", remedy="leave one out"
            )
        choice("precision", self.precision, Precision)
        count("evaluations", self.evaluations)
        count("keep", self.keep)
        instance("space", self.space, SubnetSpace)
        instance("supernet", self.supernet, Training)
        if self.recover is not None:
            instance("recover", self.recover, Distill)
        self.limit()

    def limit(self) -> Limit | None:
        """Of latency or of MACs, parsed."""
        if self.latency is not None:
            return parse_limit("latency", self.latency)
        return None if self.macs is None else parse_limit("macs", self.macs)
