"""The step configs: what each step is asked to do, as frozen data that checks itself."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pydantic

from paredown.core.budget import Limit, parse_limit
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.fields import choice, count, fraction, fractions, instance, names, positive, within
from paredown.core.knowledge import (
    AttentionTransfer,
    Blocks,
    Feature,
    Hint,
    OfOutput,
    OfText,
    Soft,
    checked_features,
    checked_soft,
)
from paredown.core.precision import Activations as Activations  # noqa: PLC0414 (every step is imported from here)
from paredown.core.precision import MixedBits as MixedBits  # noqa: PLC0414 (likewise)
from paredown.core.precision import Quantize as Quantize  # noqa: PLC0414 (likewise)
from paredown.core.precision import Weights as Weights  # noqa: PLC0414 (likewise)
from paredown.core.training import Training as Training  # noqa: PLC0414 (likewise)

Criterion = Literal[
    "taylor",
    "taylor_loss",
    "taylor_second",
    "gradient",
    "gradient_loss",
    "fisher",
    "obd",
    "obs",
    "magnitude",
    "l1",
    "group_norm",
    "bn_scale",
    "fpgm",
    "lamp",
    "activation",
    "apoz",
    "random",
]
Scope = Literal["global", "uniform", "depth"]
Precision = Literal["fp32", "int8"]
Gate = Literal["static", "squeeze_excite"]
LatencyBy = Literal["both", "macs", "table"]
SparseMethod = Literal["magnitude", "sensitivity", "sensitivity_loss", "wanda", "sparsegpt"]
Pattern = Literal["2:4", "4:8"]

_FORBID = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class ChannelAttention:
    """An importance that is learned: a gate on every dependency group, trained with a penalty on open gates.

    gate: "static" (one number a channel) or "squeeze_excite" (computed from the input, averaged over calibration data; static
    for groups that something else than a convolution or linear layer reads).
    penalty: weight of the mean gate in the loss. None: as much as the goal in MACs or latency takes, and gates close for good
    while the weights adapt, so that the cut itself removes nothing but zeros (norms over channels counted them until then); where
    the goal is a threshold or branches, 0.1.
    temperature: of the gates' sigmoid at the end; it falls from 1. training: of the gates and the weights together.
    """

    __pydantic_config__: ClassVar = _FORBID
    kind: Literal["channel_attention"] = "channel_attention"
    gate: Gate = "static"
    penalty: float | None = None
    temperature: float = 0.3
    training: Training = field(default_factory=lambda: Training(effort=Effort(1, "epochs"), learning_rate=0.05))

    def __post_init__(self) -> None:
        instance("training", self.training, Training)
        self.training.require_names("gates")
        choice("gate", self.gate, Gate)
        if self.penalty is not None:
            within("penalty", self.penalty, 0, 1e3)
        positive("temperature", self.temperature)


@dataclass(frozen=True)
class Slimming:
    """An importance that is learned: the scales of batch norms, after training with an L1 penalty on them (Network Slimming)."""

    __pydantic_config__: ClassVar = _FORBID
    kind: Literal["slimming"] = "slimming"
    penalty: float = 1e-4
    training: Training = field(default_factory=lambda: Training(effort=Effort(1, "epochs")))

    def __post_init__(self) -> None:
        instance("training", self.training, Training)
        self.training.require_names("an importance")
        within("penalty", self.penalty, 0, 1e3)


@dataclass(frozen=True)
class Unavailable:
    """Stands for a user's function in a recipe that was read from a file, which holds only the name of it."""

    name: str

    def __call__(self, *_: object) -> Any:
        raise RecipeError(
            "a step that holds a function of the user's can't be done from a file",
            got=self.name,
            remedy="build that recipe in Python, and pass it as recipe=",
        )


@dataclass(frozen=True)
class Schedule:
    """How the goal is reached: in one cut, or in several with training between them.

    steps: cuts. curve: "linear" takes equal parts, "cubic" most of it early (Zhu and Gupta, arXiv:1710.01878).
    between: how long to train after each cut but the last; distillation from the original.
    """

    __pydantic_config__: ClassVar = _FORBID
    steps: int = 1
    curve: Literal["linear", "cubic"] = "linear"
    between: Effort = field(default_factory=lambda: Effort(1, "epochs"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "between", Effort.parse(self.between))
        count("steps", self.steps)
        choice("curve", self.curve, Literal["linear", "cubic"])

    def fractions(self) -> tuple[float, ...]:
        """The part of the goal that is reached after each cut; the last is 1."""
        times = [(i + 1) / self.steps for i in range(self.steps)]
        return tuple(t if self.curve == "linear" else 1 - (1 - t) ** 3 for t in times)


@dataclass(frozen=True)
class Widths:
    """Which widths a dependency group may end at.

    floor, ceiling: fractions of each group that stay in any case, that may stay at most.
    floors, ceilings: in their place, for the groups whose channels a module gives, or what is in it, by its name:
    `floors={"layer4": 0.5}`; of several names the longest counts.
    round_to: multiples (0: what the target is fast at, by measuring it); a group that never had more than one of them may end at
    any width.
    """

    __pydantic_config__: ClassVar = _FORBID
    floor: float = 0.1
    ceiling: float = 1.0
    round_to: int = 8
    floors: dict[str, float] = field(default_factory=dict, hash=False)
    ceilings: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        within("floor", self.floor, 0, 1)
        within("ceiling", self.ceiling, self.floor, 1)
        fractions("floors", self.floors)
        fractions("ceilings", self.ceilings)
        for name in (*self.floors, *self.ceilings):
            floor, ceiling = _of(name, self.floors, self.floor), _of(name, self.ceilings, self.ceiling)
            if floor > ceiling:
                got = f"floor {floor}, ceiling {ceiling}"
                raise RecipeError(f"the floor of {name} must not lie above its ceiling", got=got, remedy="name both")
        if self.round_to != 0:
            count("round_to", self.round_to)

    def limits(self, modules: Collection[str]) -> tuple[float, float]:
        """Floor and ceiling of a group whose channels these modules give: the highest floor, the lowest ceiling above it."""
        floor = max((_of(module, self.floors, self.floor) for module in modules), default=self.floor)
        ceiling = min((_of(module, self.ceilings, self.ceiling) for module in modules), default=self.ceiling)
        return floor, max(floor, ceiling)


def _of(module: str, by_name: dict[str, float], otherwise: float) -> float:
    """What stands under the module's own name, or the longest name of one that it is a part of."""
    outer = [name for name in by_name if not name or module == name or module.startswith(f"{name}.")]
    return by_name[max(outer, key=len)] if outer else otherwise


@dataclass(frozen=True)
class Prune:
    """Structured pruning: whole channels are removed, the model keeps its class and really gets smaller.

    Exactly one of ratio, macs, latency and threshold says how much:
    ratio: fraction of the MACs to remove, in (0, 1). macs: what may remain, "0.5x" or "20 M".
    latency: what may remain, measured in the target's runtime, "0.6x" (of the float model) or "3 ms", of files of the `precision`
    that the model will have in the end: "int8" where it is quantized afterwards. threshold: remove what is less important, in the
    unit of the importance's scores; of most criteria 1 is the mean score of a channel, which most channels of a trained model lie
    below (of learned gates: 0 is closed, 1 the most open; of "random" and of a callable: as they are).
    latency_by: "macs" orders widths by what they lose per MAC; "table" chooses them exactly over a table of latencies, measured
    group by group (minutes, remembered); "both" tries both, and takes what leaves the outputs nearer to
    the original's before any training. A uniform scope goes by MACs.
    importance: a criterion by name (one file each in `pruning/importance/`), a learned one, or a callable of your own:
    `(model, task, groups) -> one array (size,) per group`.
    scope: "global" ranks all groups together, "uniform" removes the same fraction of each, "depth" drops whole residual branches.
    schedule: one cut or several. widths: what each group may end at. protect: modules by name that keep their widths; what trains
    a model on the way (schedules, learned importances) leaves the weights of `Task.protect` alone, not theirs.
    """

    __pydantic_config__: ClassVar = _FORBID
    ratio: float | None = None
    macs: str | None = None
    latency: str | None = None
    precision: Precision = "fp32"
    threshold: float | None = None
    latency_by: LatencyBy = "both"
    importance: Criterion | ChannelAttention | Slimming | Callable[..., Any] = "taylor"
    scope: Scope = "global"
    schedule: Schedule = field(default_factory=Schedule)
    widths: Widths = field(default_factory=Widths)
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        goals = [name for name in ("ratio", "macs", "latency", "threshold") if getattr(self, name) is not None]
        if len(goals) != 1:
            raise RecipeError(
                "Prune takes exactly one of ratio, macs, latency, threshold",
                got=goals or "none",
                remedy="write Prune(ratio=0.5)",
            )
        if self.ratio is not None:
            fraction("ratio", self.ratio, "write ratio=0.5 to remove half of the MACs")
        if self.threshold is not None:
            positive("threshold", self.threshold)
        if self.macs is not None:
            parse_limit("macs", self.macs)
        if self.latency is not None:
            parse_limit("latency", self.latency)
        choice("precision", self.precision, Precision)
        choice("latency_by", self.latency_by, LatencyBy)
        for name, default in (("precision", "fp32"), ("latency_by", "both")):
            if getattr(self, name) != default and self.latency is None:
                raise RecipeError(
                    f"{name} says how a latency is reached",
                    got=f"{getattr(self, name)}, and no latency",
                    remedy=f"leave {name} out",
                )
        if isinstance(self.importance, type):
            name = self.importance.__name__
            raise RecipeError("importance must be an object, not a class", got=name, remedy=f"write importance={name}()")
        if not callable(self.importance) and not isinstance(self.importance, ChannelAttention | Slimming):
            choice("importance", self.importance, Criterion)
        choice("scope", self.scope, Scope)
        instance("schedule", self.schedule, Schedule)
        instance("widths", self.widths, Widths)
        if self.latency_by == "table" and self.scope == "uniform":
            got, remedy = 'scope="uniform", latency_by="table"', "leave latency_by out"
            raise RecipeError("a table chooses the width of each group by itself", got=got, remedy=remedy)
        if self.scope == "depth" and (self.widths.floors or self.widths.ceilings):
            got, remedy = 'scope="depth"', "name in protect what must stay"
            raise RecipeError("floors and ceilings are of widths, and depth drops whole branches", got=got, remedy=remedy)
        names("protect", self.protect)

    @property
    def latency_ways(self) -> tuple[LatencyBy, ...]:
        """By which of "macs" and "table" widths are chosen for a latency."""
        if self.scope != "global":
            return ("macs",)
        return ("macs", "table") if self.latency_by == "both" else (self.latency_by,)

    def limit(self) -> Limit | None:
        """The goal in MACs or in latency, parsed; None where the goal is a threshold."""
        if self.ratio is not None:
            return Limit(1 - self.ratio, relative=True)
        if self.macs is not None:
            return parse_limit("macs", self.macs)
        return None if self.latency is None else parse_limit("latency", self.latency)


@dataclass(frozen=True)
class Sparsify:
    """Sparsity that stays in shape: single weights become zero, shapes stay, and they stay zero while paredown trains the model
    (in a training loop of your own: after `paredown.keep_sparse_(model)`).

    Of linear layers and convolutions, parametrized ones (weight_norm) aside: embeddings, recurrent layers, transposed
    convolutions and the projections that nn.MultiheadAttention holds itself stay dense.

    Exactly one of the first three says how much:
    ratio: fraction of those weights, in (0, 1). pattern: "2:4" or "4:8" along the input dimension.
    threshold: what scores less becomes zero. Of both sensitivities, 1 is what a weight scores on the average; of the others it is
    in the unit of the score, |weight| of magnitude for one.
    method: "magnitude", "sensitivity" (|weight * gradient| of the output, without labels), "sensitivity_loss" (of the loss),
    "wanda" (|weight| * norm of its input), "sparsegpt" (second order, updates what stays).
    scope: read by magnitude and sensitivities under a ratio only: "global" ranks all layers together, "uniform" takes the same
    fraction of each. Whatever it says, wanda takes the same fraction of each row, sparsegpt of each block of 128 columns.
    samples: of the training data, for the methods that look at it. protect: module names.
    """

    __pydantic_config__: ClassVar = _FORBID
    ratio: float | None = None
    threshold: float | None = None
    pattern: Pattern | None = None
    method: SparseMethod = "magnitude"
    scope: Literal["global", "uniform"] = "global"
    samples: int = 256
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        goals = [name for name in ("ratio", "threshold", "pattern") if getattr(self, name) is not None]
        if len(goals) != 1:
            raise RecipeError(
                "Sparsify takes exactly one of ratio, threshold, pattern", got=goals or "none", remedy="write Sparsify(ratio=0.5)"
            )
        if self.ratio is not None:
            fraction("ratio", self.ratio, "write ratio=0.5 to make half of the weights zero")
        if self.threshold is not None:
            positive("threshold", self.threshold)
        if self.pattern is not None:
            choice("pattern", self.pattern, Pattern)
        choice("method", self.method, SparseMethod)
        choice("scope", self.scope, Literal["global", "uniform"])
        count("samples", self.samples)
        names("protect", self.protect)


@dataclass(frozen=True)
class Distill:
    """Training against a teacher, which without further word is the task's own model.

        loss = (1 - hard_weight) soft + hard_weight hard + sum of weight * feature loss

    temperature: of "soft_labels", "standardized", "dkd", "multi_label", TokenLevel(); their losses are scaled by its square
    (Hinton 2015).
    hard_weight: weight of the task's own loss, 0 (labels never read) to 1 (no soft loss; without features no teacher is asked).
    reconstruct: before anything else, and without labels, the parts of a student learn what the same parts of the teacher give.
    True: each layer of a student that was cut from the teacher is solved by least squares, in seconds; worth most where there
    is no time to train (`distillation/reconstruct.py`). Blocks(): then each block is trained, all in one pass
    (`distillation/blockwise.py`). recalibrate: where no layer was solved, batch norms take new statistics.
    soft: what is compared of the outputs, one file each in `distillation/losses/`; "dkd", which is DKD(), and
    BoundedRegression() read the targets. None: nothing is.
    "auto": "soft_labels", or "regression" where an output has no dimension of classes or the targets are numbers themselves.
    TokenLevel(), SequenceLevel(): of language models, token by token, or on text that the teacher writes.
    features: what is compared of hidden layers. pairs: (the student's module, the teacher's) whose features are compared; without
    any: stage ends, by lineage where the student descends from the teacher, else as `distillation/pairing.py` proposes.
    balance: feature losses are scaled so that on the first batch each has the gradient norm of soft and hard loss together; their
    weights, taken relative to their defaults, then say how much more or less.
    """

    __pydantic_config__: ClassVar = _FORBID
    temperature: float = 4.0
    hard_weight: float = 0.1
    training: Training = field(default_factory=Training)
    reconstruct: bool | Blocks = False
    recalibrate: bool = True
    soft: Soft | OfOutput | OfText | None = "auto"
    features: tuple[Feature, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    balance: bool = False

    def __post_init__(self) -> None:
        instance("training", self.training, Training)
        positive("temperature", self.temperature)
        within("hard_weight", self.hard_weight, 0, 1)
        instance("reconstruct", self.reconstruct, bool, Blocks)
        instance("recalibrate", self.recalibrate, bool)
        instance("balance", self.balance, bool)
        checked_soft(self.soft)
        object.__setattr__(self, "features", checked_features(self.features))
        object.__setattr__(self, "pairs", _pairs(self.pairs))
        if not self.features and (self.pairs or self.balance):
            raise RecipeError(
                "pairs and balance concern feature losses", got="no features", remedy="write features=(AttentionTransfer(),)"
            )
        if not self.features and self.soft is None and self.hard_weight == 0:
            raise RecipeError("Distill needs a loss", got="soft=None, hard_weight=0, no features", remedy="leave soft out")

    @classmethod
    def combined(cls, training: Training | None = None) -> "Distill":
        """What recovers a convnet that was cut from its teacher most per second (`benchmarks/recovery.py`): soft labels,
        attention transfer and hints by lineage together, balanced.
        """
        return cls(training=training or Training(), features=(AttentionTransfer(), Hint()), balance=True)


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    rule, remedy = "pairs must be a tuple of (student module, teacher module)", 'write pairs=(("layer2", "layer2"),)'
    if not isinstance(value, tuple | list) or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value):
        raise RecipeError(rule, got=repr(value), remedy=remedy)
    if not all(isinstance(name, str) and name for pair in value for name in pair):
        raise RecipeError(rule, got=repr(value), remedy=remedy)
    return tuple((student, teacher) for student, teacher in value)


Step = Prune | Sparsify | Distill | Quantize
