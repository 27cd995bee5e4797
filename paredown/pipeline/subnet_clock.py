"""What tells subnets' latencies during a search: a table of blocks where that takes fewer timings, else each one's own file.

In a folder it is kept after every timing, so that a search that goes on stays within the same limit and times nothing twice.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.core.errors import ArtifactError
from paredown.core.progress import Progress, silent
from paredown.core.subnets import Subnets
from paredown.core.target import Target
from paredown.nas.elastic import Elastic
from paredown.nas.evaluators.blocks import BlockLatency, Latency, measure_blocks, timings
from paredown.nas.outcome import Found
from paredown.pipeline.evaluate import latency_of
from paredown.pipeline.timings import latency_at
from paredown.task.task import Task

LATENCY = "latency_ms"  # the metric's name


@dataclass(frozen=True, eq=False)
class Clock:
    """baseline_ms: of the float original. measure: ms of a subnet, in the precision asked for, by the upper end of its interval:
    a subnet must keep a limit beyond doubt. blocks: the table, if any.
    """

    space: Elastic
    baseline_ms: float
    measure: Latency
    log: "_Log"
    blocks: BlockLatency | None = None

    def time(self, found: Found) -> float:
        """ms of a subnet that the search found, timed for real, once. Weights don't matter."""
        if self.blocks is None:
            return found.validation[LATENCY]
        name = json.dumps(dict(found.values), sort_keys=True)
        if name not in self.log.data["whole"]:
            self.log.data["whole"][name] = self.measure(self.space.subnet(found.values).eval())
            self.log.write()
        return float(self.log.data["whole"][name])


def clock_of(
    space: Elastic, task: Task, target: Target, config: Subnets, *, folder: Path | None, seed: int, progress: Progress = silent
) -> Clock:
    """Raises ArtifactError where the folder holds something else under that name."""
    log = _Log(None if folder is None else folder / "latency.json")
    if "baseline_ms" not in log.data:
        log.data |= {"baseline_ms": latency_of(task, target)(task.model), "blocks": None, "whole": {}}
        log.write()
    baseline = float(log.data["baseline_ms"])
    own = latency_of(task, target, ms=baseline, upper=True)
    judge = latency_at(config.precision, task, target, own, upper=True)
    if timings(space.space) >= config.evaluations:
        return Clock(space, baseline, judge, log)

    def keep(found: BlockLatency) -> None:
        log.data["blocks"] = json.loads(found.to_json())
        log.write()

    known = BlockLatency.from_json(space.space, json.dumps(log.data["blocks"])) if log.data["blocks"] else None
    measure = latency_at(config.precision, task, target, latency_of(task, target, ms=baseline))
    blocks = measure_blocks(space, measure, known=known, keep=keep, seed=seed, progress=progress)
    return Clock(space, baseline, judge, log, blocks)


class _Log:
    """What was timed so far: {"baseline_ms", "blocks", "whole": {values: ms}}; empty at first. file: None: it is kept nowhere."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.data: dict[str, Any] = {}
        if file is not None and file.is_file():
            self._read(file)

    def write(self) -> None:
        """Whole or not at all."""
        if self.file is not None:
            unfinished = self.file.with_name(f".{self.file.name}.unfinished")
            unfinished.write_text(json.dumps(self.data), encoding="utf-8")
            unfinished.replace(self.file)

    def _read(self, file: Path) -> None:
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            self.data = {"baseline_ms": float(data["baseline_ms"]), "blocks": data["blocks"], "whole": dict(data["whole"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                "latency.json holds what a search has timed", got=f"{type(error).__name__}: {error}", remedy="delete it"
            ) from error
