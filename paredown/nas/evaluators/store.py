"""Results on disk as JSON lines: a search that was stopped runs again, and what is in the store isn't evaluated twice.

The first line says which search it belongs to; a last line that was cut off is dropped.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from paredown.core.errors import ArtifactError
from paredown.nas.evaluators.evaluator import Job
from paredown.nas.problem import Result
from paredown.nas.strategies.memory import dump, restore

_VERSION = 1


class Store:
    """One file. identity: of space, evaluator and seed. Raises ArtifactError where the file belongs to another search."""

    def __init__(self, path: str | pathlib.Path, identity: str) -> None:
        self.path = pathlib.Path(path)
        self.found: dict[tuple[tuple[int, ...], float], Result] = {}
        header = {"paredown_search": _VERSION, "identity": identity}
        rows = list(self._rows()) if self.path.exists() else []
        if rows and rows[0] != header:
            raise ArtifactError(
                "a store belongs to one search (same space, evaluator and seed)", got=self.path.name,
                remedy="name another file, or delete it"
            )  # fmt: skip
        for result in self._results(rows[1:]):
            self.found[result.architecture, result.fidelity] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite([header, *rows[1:]])

    def get(self, job: Job) -> Result | None:
        return self.found.get((job.architecture, job.fidelity))

    def add(self, result: Result) -> None:
        """On disk before it returns."""
        self.found[result.architecture, result.fidelity] = result
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dump([result])[0]) + "\n")

    def _rows(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                return
            yield row if isinstance(row, dict) else {}

    def _results(self, rows: list[dict[str, Any]]) -> list[Result]:
        try:
            return restore(rows)
        except (TypeError, KeyError) as error:
            raise ArtifactError("a store holds results, one a line", got=self.path.name, remedy="delete it") from error

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Whole lines only, so that what is appended starts on a line of its own."""
        unfinished = self.path.with_name(f".{self.path.name}")
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        unfinished.replace(self.path)
