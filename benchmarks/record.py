"""Result tables: one CSV a benchmark, each row with its environment, its n and its interval; written whole or not at all."""

import csv
import dataclasses
import datetime
import pathlib
from typing import Any

import torch

import paredown
from paredown.core.measurement import Measurement
from paredown.core.target import Target
from paredown.deploy.capabilities import environment

RESULTS = pathlib.Path(__file__).parent / "results"


def row(name: str, measurement: Measurement, **extra: Any) -> dict[str, Any]:
    """One figure as a flat row."""
    return {"case": name, **{k: v for k, v in dataclasses.asdict(measurement).items() if v is not None}, **extra}


def read(file: str) -> list[dict[str, Any]]:
    """The rows of RESULTS/file as text, none of them where there is no such file."""
    if not (RESULTS / file).exists():
        return []
    with (RESULTS / file).open(newline="") as stream:
        return list(csv.DictReader(stream))


def write(file: str, rows: list[dict[str, Any]], target: Target | None = None, *, other_machines: bool = False) -> pathlib.Path:
    """RESULTS/file, its columns the union of the rows', with date and environment appended to each row that has none.

    other_machines: what the file holds of processors of another kind stays in it, above.
    """
    stamp = {
        "date": datetime.date.today().isoformat(),
        "paredown": paredown.__version__,
        "torch_threads": torch.get_num_threads(),
    }
    where = "; ".join(f"{key}={value}" for key, value in environment(target or Target()).items())
    stamp["environment"] = where
    full = [{**each, **stamp, **each} for each in rows]  # a row of an earlier run keeps its own
    if other_machines:
        full = [each for each in read(file) if _processor(each) != _processor(stamp)] + full
    columns = list(dict.fromkeys(key for each in full for key in each))
    RESULTS.mkdir(exist_ok=True)
    path, unfinished = RESULTS / file, RESULTS / f".{file}"
    with unfinished.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(full)
    unfinished.replace(path)
    return path


def _processor(row: dict[str, Any]) -> str:
    """The part of an environment that names the processor and its instructions."""
    return str(row["environment"]).partition("; os=")[0]
