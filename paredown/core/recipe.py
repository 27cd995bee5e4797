"""Intent as data: the recipe, a frozen ordered list of steps that round-trips through JSON and YAML.

A recipe says what is wanted ("remove half of the MACs"); what was decided (which channels) stands in the manifest.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pydantic
import yaml
from pydantic_core import CoreSchema, core_schema

from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.steps import Distill, Prune, Quantize, Sparsify, Step, Unavailable

_STEPS: dict[str, type[Step]] = {"prune": Prune, "sparsify": Sparsify, "distill": Distill, "quantize": Quantize}


@dataclass(frozen=True)
class Recipe:
    """An ordered list of steps. A stage is a structural step (prune, quantize) and the distillation that recovers it."""

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.steps, tuple) or not all(isinstance(step, Step) for step in self.steps):
            raise RecipeError(
                "a recipe's steps must be a tuple of Prune, Sparsify, Distill and Quantize",
                got=_short(self.steps),
                remedy="write Recipe((Prune(ratio=0.5), Distill()))",
            )
        names = [step_name(step) for step in self.steps]
        if "quantize" in names and {"prune", "sparsify"}.intersection(names[names.index("quantize") :]):
            raise RecipeError(
                "a quantized model can't be pruned or made sparse: its grids are fixed",
                got=" > ".join(names),
                remedy="put prune and sparsify before quantize",
            )
        if names.count("quantize") > 1:
            raise RecipeError("a model is quantized once", got=" > ".join(names), remedy="keep one quantize step")
        for step, after in itertools.zip_longest(self.steps, names[1:], fillvalue="nothing"):
            if isinstance(step, Quantize) and step.scales != "fixed" and after != "distill":
                raise RecipeError(
                    f'scales="{step.scales}" are trained by the distill step that follows',
                    got=f"quantize > {after}",
                    remedy='put a distill step behind quantize, or write scales="fixed"',
                )

    @classmethod
    def of(cls, value: object) -> "Recipe":
        """A Recipe passes through; a tuple or list of steps becomes one. Raises RecipeError for anything else."""
        if isinstance(value, Recipe):
            return value
        if isinstance(value, tuple | list):
            return cls(tuple(value))
        raise RecipeError(
            "recipe must be a Recipe", got=type(value).__name__, remedy="write paredown.Recipe((...)), or Recipe.parse(text)"
        )

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
        """Plain data: `{"steps": [{"step": "prune", "ratio": 0.5}, ...]}`; fields at their default are left out.

        A step that holds a function of the user's names it and says `portable: false`; read back, it can be shown, not done.
        """
        return {"steps": [step_to_dict(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, data: Any) -> "Recipe":
        """The inverse. Raises RecipeError on an unknown step, an unknown field or a value of the wrong type."""
        if not isinstance(data, dict) or set(data) != {"steps"} or not isinstance(data["steps"], list):
            raise RecipeError(
                "a recipe is a mapping with one key, steps, a list",
                got=_short(data),
                remedy="see `recipe.yaml` of any finished run",
            )
        return cls(tuple(step_from_dict(entry) for entry in data["steps"]))

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
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that can't be
        raise RecipeError(
            "a recipe must be valid YAML or JSON",
            got=" ".join(str(error).split()),
            remedy="see `recipe.yaml` of any finished run",
        ) from None


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Raises RecipeError for a key that stands twice: which of the two values counts would be a guess."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RecipeError("a recipe must name each field once", got=f"{_short(key)} twice", remedy="remove one of the two")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, with each key once."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge")
        _once((key.value, None) for key in keys)
        return node


def step_name(step: Step) -> str:
    """ "prune", "sparsify", "distill" or "quantize"."""
    return type(step).__name__.lower()


def step_to_dict(step: Step) -> dict[str, Any]:
    """One step as plain data: `{"step": "prune", "ratio": 0.5}`."""
    return {"step": step_name(step), **_changed(step), **_portability(step)}


def step_from_dict(entry: Any) -> Step:
    """The inverse. Raises RecipeError."""
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), str) or entry["step"] not in _STEPS:
        known = ", ".join(_STEPS)
        raise RecipeError(f"each step names itself by `step`, one of {known}", got=_short(entry), remedy="write `- step: prune`")
    fields = {key: value for key, value in entry.items() if key != "step"}
    if fields.pop("portable", True) is False:
        fields["importance"] = Unavailable(str(fields.get("importance")))
    cls = _STEPS[entry["step"]]
    try:
        step = pydantic.TypeAdapter[Step](cls).validate_python(fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(f.name for f in dataclasses.fields(cls))
        raise RecipeError(
            f"step {entry['step']}: field {where!r}: {first['msg']}",
            got=_short(first.get("input")),
            remedy=f"its fields are {known}",
        ) from None
    _check_truths(entry["step"], fields, step)
    return step


def _check_truths(where: str, given: Any, found: Any) -> None:
    """Raises RecipeError where a yes, no, true or false was taken for the number 1 or 0."""
    if isinstance(given, bool) and not isinstance(found, bool):
        raise RecipeError(f"{where} must be a number", got=given, remedy="write the number")
    if isinstance(given, dict) and dataclasses.is_dataclass(found):
        for name, value in given.items():
            _check_truths(f"{where}: {name}", value, getattr(found, name, None))
    if isinstance(given, dict) and isinstance(found, dict):
        for name, value in given.items():
            _check_truths(f"{where}: {name}", value, found.get(name))
    if isinstance(given, list) and isinstance(found, tuple):
        for value, item in zip(given, found, strict=False):
            _check_truths(where, value, item)


def _changed(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from its defaults, as plain data; `kind`, where it tells configs apart, in any case."""
    result: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value != default or (f.name == "kind" and not isinstance(config, Quantize)):
            result[f.name] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Effort):
        return str(value)
    if isinstance(value, Unavailable):
        return value.name
    if dataclasses.is_dataclass(value):
        return _changed(value)
    if callable(value):
        return _name(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _portability(step: Step) -> dict[str, Any]:
    """`portable: false` where a field holds a function, which no file can."""
    values = [getattr(step, f.name) for f in dataclasses.fields(step)]
    return {"portable": False} if any(callable(v) for v in values) else {}


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}".lstrip(".")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
