"""Results on disk as JSON lines: a search that was stopped runs again, and what is in the store isn't evaluated twice.

The first line says which search it belongs to; a last line that was cut off is dropped. A failed result stands in it, and is
tried again: what it failed of may have passed.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from paredown.core.errors import ArtifactError, OutputError
from paredown.nas.evaluators.evaluator import Evaluator, Job
from paredown.nas.evaluators.executor import Executor
from paredown.nas.problem import Result
from paredown.nas.space import Space
from paredown.nas.strategies.memory import dump, restore

_VERSION = 1


class Store:
    """One file. identity: of space, evaluator and seed. Raises ArtifactError where the file is another search's, or is none."""

    @classmethod
    def of(cls, path: str | pathlib.Path, space: Space, evaluator: Evaluator, seed: int) -> "Store":
        text = f"{space.to_json()}\n{evaluator.name}\n{seed}"
        return cls(path, hashlib.sha256(text.encode()).hexdigest()[:16])

    def __init__(self, path: str | pathlib.Path, identity: str) -> None:
        self.path = pathlib.Path(path)
        self.found: dict[tuple[tuple[int, ...], float], Result] = {}
        header = {"paredown_search": _VERSION, "identity": identity}
        rows = self._rows() if self.path.exists() else []
        if rows and rows[0] != header:
            raise ArtifactError(
                "a store belongs to one search (same space, evaluator and seed)", got=self.path.name,
                remedy="name another file, or delete it"
            )  # fmt: skip
        for result in self._results(rows[1:]):
            self.found[result.architecture, result.fidelity] = result
        with _written(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite([header, *rows[1:]])

    def get(self, job: Job) -> Result | None:
        found = self.found.get((job.architecture, job.fidelity))
        return None if found is None or found.failed else found

    def add(self, result: Result) -> None:
        """On disk before it returns."""
        self.found[result.architecture, result.fidelity] = result
        with _written(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dump([result])[0]) + "\n")

    def _rows(self) -> list[dict[str, Any]]:
        """Every whole line. Raises ArtifactError where one isn't ours: the file may be anything of the user's."""
        try:
            *whole, last = self.path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in whole]
        except (OSError, ValueError) as error:
            raise self._foreign(error) from error
        if not all(isinstance(row, dict) for row in rows) or (last and not rows):
            raise self._foreign("lines of another kind")
        return rows

    def _results(self, rows: list[dict[str, Any]]) -> list[Result]:
        try:
            results = restore(rows)
            numbers = [[*result.metrics.values(), *result.deviation.values(), result.seconds] for result in results]
            if not all(math.isfinite(number) for each in numbers for number in each):
                raise ValueError("a metric that isn't finite")
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise self._foreign(error) from error
        return results

    def _foreign(self, why: object) -> ArtifactError:
        return ArtifactError(
            "a store is a file that holds results, one a line", got=f"{self.path.name}: {why}", remedy="name another file"
        )

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Whole lines only, so that what is appended starts on a line of its own."""
        unfinished = self.path.with_name(f".{self.path.name}")
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        unfinished.replace(self.path)


def run_stored(executor: Executor, jobs: Sequence[Job], store: Store | None) -> list[Result]:
    """Results in the order of the jobs; what the store holds is taken from there."""
    if store is None:
        return executor.run(jobs, lambda _result: None)
    known = {i: found for i, job in enumerate(jobs) if (found := store.get(job)) is not None}
    new = iter(executor.run([job for i, job in enumerate(jobs) if i not in known], store.add))
    return [known[i] if i in known else next(new) for i in range(len(jobs))]


@contextmanager
def _written(path: pathlib.Path) -> Iterator[None]:
    """Raises OutputError where the file can't be written to: results that were found are in it, up to the last that went in."""
    try:
        yield
    except OSError as error:
        got = f"{path.name}: {error.strerror}"
        raise OutputError("a store must be a file that can be written to", got=got, remedy="name another") from error
