"""Tables of benchmarks that take hours, a part in each run: what was measured before stays, and isn't measured again."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from benchmarks import record, recovery, students
from benchmarks.quantization.parts import Rows, grow
from paredown import Distill
from paredown.core.effort import Effort
from paredown.core.measurement import Measurement

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def results(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.quantization.parts.RESULTS", tmp_path)
    monkeypatch.setattr(recovery, "FOLDER", tmp_path)
    monkeypatch.setattr(students, "FOLDER", tmp_path)


def test_a_killed_run_leaves_its_parts_and_the_next_goes_on() -> None:
    measured: list[str] = []

    def part(name: str, error: type[BaseException] | None = None) -> Callable[[], Rows]:
        def measure() -> Rows:
            if error is not None:
                raise error
            measured.append(name)
            return [{"case": name, "ok": True}]

        return measure

    with pytest.raises(KeyboardInterrupt):
        grow("zoo", {"a": part("a"), "b": part("b", KeyboardInterrupt), "c": part("c")})
    grow("zoo", {name: part(name) for name in "abc"})
    assert measured == ["a", "b", "c"]
    rows = record.read("quantization_zoo.csv")
    assert [row["case"] for row in rows] == ["a", "b", "c"] and all(row["environment"] and row["date"] for row in rows)


def test_what_the_table_of_recovery_has_of_a_time_stays_until_all_of_it_is_done_again() -> None:
    def done(scheme: str, seconds: int, seed: int, rate: float) -> None:
        cell = recovery.Cell(scheme, Effort(seconds, "seconds"), seed, rate)
        drops = {split: dataclasses.asdict(Measurement("drop", 0.03)) for split in recovery.SPLITS}
        cell.file.write_text(json.dumps({**drops, "macs_ratio": 0.35, "wall_seconds": 61.0}))

    record.write("recovery.csv", [{"case": "old", "seconds": seconds, "value": 0.1} for seconds in (180.0, 60.0)])
    done("plain", 60, 0, 0.05)
    done("plain", 600, 0, 0.05)
    recovery.written()
    found = [(float(row["seconds"]), row["value"]) for row in record.read("recovery.csv")]
    assert found == [(180.0, "0.1"), (60.0, "0.1"), (600.0, "0.03"), (600.0, "0.03")]
    for scheme in recovery.SCHEMES:
        for seed, rate in itertools.product(recovery.SEEDS, recovery.rates(scheme)):
            done(scheme, 60, seed, rate)
    recovery.written()
    cases = {row["case"] for row in record.read("recovery.csv") if float(row["seconds"]) == 60}
    assert cases == {f"{scheme} 60 seconds" for scheme in recovery.SCHEMES}


def test_other_seeds_stay_in_the_table_of_students_and_count_in_its_means() -> None:
    names = ("no teacher", "soft labels")
    config = Distill()
    schemes = tuple(students.Scheme(name, lambda _: nn.Identity(), config) for name in names)
    case = students.Case("big -> small", "students.csv", lambda _: pytest.fail("nothing is trained"), schemes)
    effort = str(config.training.effort)

    def old(name: str, metric: str, seed: int, value: float, effort: str = effort) -> Row:
        return {"case": name, "metric": metric, "seed": seed, "value": value, "teacher_student": case.name, "effort": effort}

    gains = {0: 0.01, 1: 0.02, 2: 0.03}
    kept = [old(name, "top-1", seed, 0.6) for seed in gains for name in names]
    kept += [old("soft labels against no teacher", "gain", seed, gain) for seed, gain in gains.items()]
    record.write(case.table, [*kept, old("soft labels", "top-1", 0, 0.1, "1 epochs")])
    rows = students.table(case)
    (mean,) = [row for row in rows if row["metric"] == "mean gain"]
    assert mean["value"] == pytest.approx(0.02) and mean["seeds_better"] == 3
    assert len(rows) == len(kept) + 1, "of another effort nothing is taken"
    case.file(schemes[1], 0).parent.mkdir(parents=True)
    scores = {"digest": "d", "values": [1.0, 0.0]}
    case.file(schemes[1], 0).write_text(json.dumps({"validation": scores, "test": scores}))
    assert students.table(case) == rows, "a seed is taken over when all its students are done"
    case.file(schemes[0], 0).write_text(json.dumps({"validation": scores, "test": scores}))
    assert [row["value"] for row in students.table(case) if row["metric"] == "gain"] == [0.0, "0.02", "0.03"]
