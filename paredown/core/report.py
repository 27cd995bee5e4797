"""What a run found: baseline, stages with the gate's verdicts, the front, the best candidate. Data only; `render` draws it."""

import dataclasses
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pydantic

from paredown.core.artifact import Candidate
from paredown.core.budget import Budget
from paredown.core.errors import ArtifactError
from paredown.core.measurement import Measurement
from paredown.core.recipe import Recipe
from paredown.core.target import Target

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
class Parity:
    """A file against its torch model at one batch size. kind: "max |difference| / max |y|" or "relative L2"."""

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
class Stage:
    """A structural step with its recovery, and what the gate said of it.

    latency_ratio: against the stage before that was kept, paired. size_ratio: likewise.
    reason: why it was kept or rolled back, in words. seconds: what it took.
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


@dataclass(frozen=True)
class Report:
    """One run. met: whether `best` is within the budget; else `best` is the nearest point and `binding` names what binds.

    front: the Pareto-optimal candidates in drop, latency and size, the baseline among them. environment: machine, versions.
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
    render: Callable[["Report"], str] | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> str:
        """The whole report as JSON; `Report.from_json` reads it back equal."""
        return pydantic.TypeAdapter(Report).dump_json(self, indent=2, exclude=_EXCLUDE).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "Report":
        """Raises ArtifactError where the text is not a report of this version."""
        try:
            return pydantic.TypeAdapter(Report).validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                "report.json must be a report of paredown",
                got=f"{where}: {first['msg']}",
                remedy="run `paredown compress` again",
            ) from None

    def save_html(self, path: str | pathlib.Path) -> pathlib.Path:
        """One self-contained page that opens offline."""
        if self.render is None:
            raise ArtifactError("a report read from a file has no renderer", remedy="run `paredown report DIR`")
        target = pathlib.Path(path)
        target.write_text(self.render(self), encoding="utf-8")
        return target

    def with_renderer(self, render: Callable[["Report"], str]) -> "Report":
        return dataclasses.replace(self, render=render)


_CANDIDATE: Any = {"load"}
_EXCLUDE: Any = {
    "render": True,
    "baseline": _CANDIDATE,
    "best": _CANDIDATE,
    "front": {"__all__": _CANDIDATE},
    "stages": {"__all__": {"candidate": _CANDIDATE}},
}
