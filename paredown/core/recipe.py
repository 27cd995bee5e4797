"""Intent as data: the step configs, and the recipe, a frozen ordered list of them that round-trips through JSON and YAML.

A recipe says what is wanted ("remove half of the MACs"); what was decided (which channels) stands in the manifest.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import pydantic
import yaml
from pydantic_core import CoreSchema, core_schema

from paredown.core.budget import Limit, parse_limit
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError

Importance = Literal["taylor", "magnitude", "random"]
Scope = Literal["global", "uniform"]
Observer = Literal["minmax", "percentile"]
WeightRange = Literal["auto", "full", "reduced"]
Optimizer = Literal["sgd", "adamw"]

_FORBID = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Training:
    """How a step trains: linear warm-up, then a cosine to zero, over exactly the effort.

    learning_rate: at its peak. warmup: fraction of the effort. clip: largest gradient norm (None: no clipping).
    ema: decay of the averaged weights that are returned (None: the last weights).
    channels_last: memory format of 4-dimensional inputs and weights; faster for convolutions on CPUs.
    """

    __pydantic_config__: ClassVar = _FORBID
    effort: Effort = field(default_factory=lambda: Effort(3, "epochs"))
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.02
    weight_decay: float = 5e-4
    warmup: float = 0.1
    clip: float | None = 5.0
    ema: float | None = None
    channels_last: bool = True

    def __post_init__(self) -> None:
        _choice("optimizer", self.optimizer, Optimizer)
        _positive("learning_rate", self.learning_rate)
        _within("warmup", self.warmup, 0, 1)
        _within("weight_decay", self.weight_decay, 0, 1)
        if self.ema is not None:
            _within("ema", self.ema, 0, 1)
        if self.clip is not None:
            _positive("clip", self.clip)


@dataclass(frozen=True)
class Prune:
    """Structured pruning: whole channels are removed, the model keeps its class and really gets smaller.

    Exactly one of the first four says how much:
    ratio: fraction of the MACs to remove, in (0, 1). macs: what may remain, "0.5x" or "20 M".
    latency: what may remain, measured in the target's runtime, "0.6x" or "3 ms". threshold: remove what is less important.
    importance: "taylor" (first order, |sum of weight * gradient|), "magnitude" (L2), "random" (a control).
    scope: "global" ranks all groups together, "uniform" removes the same fraction of each.
    floor: fraction of each group that stays in any case. round_to: widths become multiples of it. protect: module names.
    """

    __pydantic_config__: ClassVar = _FORBID
    ratio: float | None = None
    macs: str | None = None
    latency: str | None = None
    threshold: float | None = None
    importance: Importance = "taylor"
    scope: Scope = "global"
    floor: float = 0.1
    round_to: int = 8
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        goals = [name for name in ("ratio", "macs", "latency", "threshold") if getattr(self, name) is not None]
        if len(goals) != 1:
            raise RecipeError(
                "Prune takes exactly one of ratio, macs, latency, threshold",
                got=goals or "none",
                remedy="write Prune(ratio=0.5)",
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            hint = f"did you mean {self.ratio / 100:g}?" if 1 < self.ratio < 100 else "write ratio=0.5 to remove half of the MACs"
            raise RecipeError("ratio must be in (0, 1)", got=self.ratio, remedy=hint)
        if self.threshold is not None:
            _positive("threshold", self.threshold)
        if self.macs is not None:
            parse_limit("macs", self.macs)
        if self.latency is not None:
            parse_limit("latency", self.latency)
        _choice("importance", self.importance, Importance)
        _choice("scope", self.scope, Scope)
        _within("floor", self.floor, 0, 1)
        _count("round_to", self.round_to)

    def limit(self) -> Limit | None:
        """The goal in MACs or in latency, parsed; None where the goal is a threshold."""
        if self.ratio is not None:
            return Limit(1 - self.ratio, relative=True)
        if self.macs is not None:
            return parse_limit("macs", self.macs)
        return None if self.latency is None else parse_limit("latency", self.latency)


@dataclass(frozen=True)
class Distill:
    """Training against a teacher's soft labels; without further word the teacher is the task's own model.

    temperature: of both softmaxes; the soft loss is scaled by its square (Hinton 2015).
    hard_weight: weight of the task's own loss, 0 (labels never read) to 1 (plain fine-tuning, no teacher).
    recalibrate: batch norms take new statistics from training batches before anything else.
    """

    __pydantic_config__: ClassVar = _FORBID
    temperature: float = 4.0
    hard_weight: float = 0.1
    training: Training = field(default_factory=Training)
    recalibrate: bool = True

    def __post_init__(self) -> None:
        _positive("temperature", self.temperature)
        _within("hard_weight", self.hard_weight, 0, 1)


@dataclass(frozen=True)
class Quantize:
    """Static int8 after training: batch norms folded, weights symmetric per channel, activations asymmetric per tensor.

    bits: of both; 8. observer: "minmax", or "percentile", which clips what lies beyond `percentile` on either side.
    samples: how many training samples calibrate (0: all of them); memory does not depend on it.
    weight_range: "full" is [-127, 127]; "reduced" is [-63, 63], which can't saturate 16-bit sums on machines without
    VNNI; "auto" asks the machine. target: the runtime whose rules place the quantizers; None: the run's own,
    or, outside a run, a placement for both.
    protect: modules that stay in float.
    """

    __pydantic_config__: ClassVar = _FORBID
    bits: int = 8
    observer: Observer = "percentile"
    percentile: float = 99.99
    samples: int = 1024
    weight_range: WeightRange = "auto"
    target: str | None = None
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bits != 8:
            raise RecipeError("bits must be 8", got=self.bits, remedy="other widths are not supported yet")
        _choice("observer", self.observer, Observer)
        _choice("weight_range", self.weight_range, WeightRange)
        if not 50 < self.percentile <= 100:
            raise RecipeError("percentile must be in (50, 100]", got=self.percentile, remedy="99.99 is the usual choice")
        if self.samples < 0:
            raise RecipeError("samples must be at least 0", got=self.samples, remedy="write samples=0 to use them all")


Step = Prune | Distill | Quantize
_STEPS: dict[str, type[Prune] | type[Distill] | type[Quantize]] = {
    "prune": Prune,
    "distill": Distill,
    "quantize": Quantize,
}


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps. A stage is a structural step (prune, quantize) and the distillation that recovers it."""

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        names = [step_name(step) for step in self.steps]
        if "quantize" in names and "prune" in names[names.index("quantize") :]:
            raise RecipeError(
                "a quantized model can't be pruned: its channels are fixed",
                got=" > ".join(names),
                remedy="put prune before quantize",
            )
        if names.count("quantize") > 1:
            raise RecipeError("a model is quantized once", got=" > ".join(names), remedy="keep one quantize step")

    def stages(self) -> tuple["Recipe", ...]:
        """The recipe cut into stages, each a recipe of its own, in order."""
        cut: list[list[Step]] = []
        for step in self.steps:
            if isinstance(step, Distill) and cut and not isinstance(cut[-1][-1], Distill):
                cut[-1].append(step)
            else:
                cut.append([step])
        return tuple(Recipe(tuple(steps)) for steps in cut)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """Inside a report a recipe stands in its own written form, `to_dict`."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, Recipe) else cls.from_dict(value),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.to_dict),
        )

    def __add__(self, other: "Recipe") -> "Recipe":
        return Recipe(self.steps + other.steps)

    def __str__(self) -> str:
        return " + ".join(step_name(step) for step in self.steps) or "baseline"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `{"steps": [{"step": "prune", "ratio": 0.5}, ...]}`; fields at their default are left out."""
        return {"steps": [{"step": step_name(step), **_changed(step)} for step in self.steps]}

    @classmethod
    def from_dict(cls, data: Any) -> "Recipe":
        """The inverse. Raises RecipeError on an unknown step, an unknown field or a value of the wrong type."""
        if not isinstance(data, dict) or set(data) != {"steps"} or not isinstance(data["steps"], list):
            raise RecipeError(
                "a recipe is a mapping with one key, steps, a list",
                got=_short(data),
                remedy="see `recipe.yaml` of any finished run",
            )
        return cls(tuple(_step(entry) for entry in data["steps"]))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """From JSON or YAML text. Nothing in it is executed."""
        return cls.from_dict(_load(text))


def _load(text: str) -> Any:
    """JSON before YAML, which reads JSON's escapes of characters beyond 16 bits differently."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            "a recipe must be valid YAML or JSON", got=str(error), remedy="see `recipe.yaml` of any finished run"
        ) from None


def step_name(step: Step) -> str:
    """ "prune", "distill" or "quantize"."""
    return type(step).__name__.lower()


def _step(entry: Any) -> Step:
    if not isinstance(entry, dict) or entry.get("step") not in _STEPS:
        known = ", ".join(_STEPS)
        raise RecipeError(f"each step names itself by `step`, one of {known}", got=_short(entry), remedy="write `- step: prune`")
    fields = {key: value for key, value in entry.items() if key != "step"}
    cls = _STEPS[entry["step"]]
    try:
        return pydantic.TypeAdapter[Step](cls).validate_python(_efforts(fields))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(f.name for f in dataclasses.fields(cls))
        raise RecipeError(
            f"step {entry['step']}: field {where!r}: {first['msg']}",
            got=_short(first.get("input")),
            remedy=f"its fields are {known}",
        ) from None


def _efforts(fields: dict[str, Any]) -> dict[str, Any]:
    """The effort is written as text ("3 epochs"); everything else has its own type."""
    training = fields.get("training")
    if isinstance(training, dict) and isinstance(training.get("effort"), str):
        return {**fields, "training": {**training, "effort": Effort.parse(training["effort"])}}
    return fields


def _changed(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from its defaults, as plain data."""
    result: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value == default:
            continue
        result[f.name] = (
            str(value) if isinstance(value, Effort) else _changed(value) if dataclasses.is_dataclass(value) else _plain(value)
        )
    return result


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _choice(name: str, value: object, options: Any) -> None:
    if value not in get_args(options):
        known = ", ".join(get_args(options))
        raise RecipeError(f"{name} must be one of {known}", got=repr(value), remedy=f'write {name}="{get_args(options)[0]}"')


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise RecipeError(f"{name} must be a positive number", got=value, remedy="leave it out for the default")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{name} must be in [{low}, {high}]", got=value, remedy="leave it out for the default")


def _count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{name} must be a whole number of at least 1", got=value, remedy=f"write {name}=1")
