"""The table of `benchmarks/recovery.py`, from cells that were trained somewhere else."""

import dataclasses
import json
import pathlib

import pytest

from benchmarks import recovery
from paredown.core.effort import Effort
from paredown.core.measurement import Measurement

MINUTE = Effort(60, "seconds")


def done(cell: recovery.Cell, validation: float, test: float) -> None:
    drops = {name: dataclasses.asdict(Measurement("drop", value)) for name, value in (("validation", validation), ("test", test))}
    cell.file.write_text(json.dumps({**drops, "macs_ratio": 0.35, "wall_seconds": 61.0}))


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "FOLDER", tmp_path)


def tried(scheme: str, lost: dict[float, tuple[float, float]]) -> None:
    """The first seed at each rate: drops on validation and test."""
    for rate, (validation, test) in lost.items():
        done(recovery.Cell(scheme, MINUTE, recovery.SEEDS[0], rate), validation, test)


PLAIN = {0.05: (0.05, 0.04), 0.02: (0.04, 0.05), 0.1: (0.06, 0.01)}


def test_cells_are_told_apart_by_all_that_they_depend_on() -> None:
    cells = list(recovery.cells())
    assert len({cell.file for cell in cells}) == len(cells) == 3 * 15
    tried("plain", PLAIN)
    assert len({cell.file for cell in recovery.cells()}) == 3 * 15 + 2


def test_other_seeds_get_the_rate_that_the_first_did_best_with_on_the_validation_images() -> None:
    tried("plain", PLAIN)
    for seed in recovery.SEEDS[1:]:
        done(recovery.Cell("plain", MINUTE, seed, 0.02), 0.04 + 0.001 * seed, 0.05)
    rows = recovery.table()
    means = {row["split"]: row for row in rows if row["metric"] == "mean drop"}
    assert len(rows) == 5 * 2 + 2 + 2
    assert {row["learning_rate"] for row in means.values()} == {0.02}
    assert means["test"]["value"] == pytest.approx(0.05) and means["validation"]["value"] == pytest.approx(0.041)
    assert means["validation"]["standard_deviation"] == pytest.approx(0.001)


def test_no_mean_is_taken_before_all_seeds_are_done() -> None:
    tried("hints", {0.05: (0.03, 0.03), 0.02: (0.04, 0.04)})
    done(recovery.Cell("hints", MINUTE, recovery.SEEDS[1], 0.05), 0.03, 0.03)
    assert [row["seed"] for row in recovery.table()] == [0, 0, 0, 0, 1, 1]


def test_a_scheme_is_held_against_plain_fine_tuning_once_all_of_that_is_done() -> None:
    tried("soft_labels", {0.05: (0.02, 0.03), 0.02: (0.03, 0.02)})
    tried("plain", PLAIN)
    for seed in recovery.SEEDS[1:]:
        done(recovery.Cell("soft_labels", MINUTE, seed, 0.05), 0.02, 0.03)
    assert not [row for row in recovery.table() if row["metric"] == "of plain's drop"]
    for seed in recovery.SEEDS[1:]:
        done(recovery.Cell("plain", MINUTE, seed, 0.02), 0.04, 0.05)
    found = {(row["scheme"], row["split"]): row["value"] for row in recovery.table() if row["metric"] == "of plain's drop"}
    assert found["soft_labels", "validation"] == pytest.approx(0.5) and found["soft_labels", "test"] == pytest.approx(0.6)
    assert found["plain", "test"] == 1.0


def test_the_180_seconds_come_first_and_can_be_run_alone() -> None:
    cells = list(recovery.cells((180,)))
    assert cells == list(recovery.cells())[:15] and {cell.effort.amount for cell in cells} == {180}


def test_a_third_of_the_time_goes_to_the_blocks_where_there_are_some() -> None:
    config = recovery.Cell("combination", MINUTE, 0, 0.05).config()
    assert isinstance(config.reconstruct, recovery.Blocks)
    assert config.reconstruct.training.effort == Effort(20, "seconds") and config.training.effort.amount == pytest.approx(40)
    assert recovery.Cell("plain", MINUTE, 0, 0.05).config().hard_weight == 1.0
