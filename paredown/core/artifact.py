"""A file that ships, and a candidate: an artifact with everything that was measured on it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from paredown.core.errors import ArtifactError
from paredown.core.measurement import Measurement
from paredown.core.recipe import Recipe
from paredown.core.target import Target


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """An exported file. precision: "fp32", or what the weights are stored in: "fp16", "palette4", "int8", "int4",
    "int4/int8" where layers differ. digest: SHA-256 of the file, in hex."""

    __pydantic_config__: ClassVar = pydantic.ConfigDict(extra="forbid")
    path: str
    target: Target
    precision: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Candidate:
    """A point on the way or on the front: its recipe, its file, and what was measured on that file, in the target's runtime.

    quality: the metric on validation data. drop: against the baseline, in metric units, positive = worse.
    latency: in ms. latency_ratio: against the baseline, paired. memory: peak of inference in a child process, in MB.
    macs: for one sample; 1 MAC = 2 FLOPs. test_quality, test_drop: read once, for the report.
    checkpoint: folder of the torch model (safetensors + manifest). Paths are relative to the run's folder.
    """

    __pydantic_config__: ClassVar = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    name: str
    recipe: Recipe
    artifact: Artifact
    quality: Measurement
    drop: Measurement
    latency: Measurement
    latency_ratio: Measurement
    size_ratio: float
    macs: int
    parameters: int
    checkpoint: str | None = None
    memory: Measurement | None = None
    test_quality: Measurement | None = None
    test_drop: Measurement | None = None
    load: Callable[[], Any] | None = field(default=None, repr=False, compare=False)

    def module(self) -> Any:
        """The torch model of this candidate (an nn.Module), from its checkpoint."""
        if self.load is None:
            raise ArtifactError(
                "a candidate read from a file has no model code",
                got=self.name,
                remedy="use load_checkpoint(path, fresh_model)",
            )
        return self.load()
