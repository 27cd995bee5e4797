"""A case in parts, so that a killed one goes on where it stopped: what each part found is kept until the case is finished.

runs/bench/quantization/CASE/PART.json      the part's rows, with the date and the environment of their measurement
"""

import datetime
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import paredown
from benchmarks.record import RESULTS, read, write
from paredown.core.target import Target
from paredown.deploy.capabilities import environment

Rows = list[dict[str, Any]]
Parts = Mapping[str, Callable[[], Rows]]
_FOLDER = pathlib.Path("runs/bench/quantization")


def done(case: str, parts: Parts, *, kept: bool) -> Rows:
    """The rows of all parts, in order. kept: what is known of a part isn't measured again, and what is measured is kept."""
    rows: Rows = []
    for name, measure in parts.items():
        found = _known(case, name) if kept else None
        if found is None:
            found = [_stamped(each) for each in measure()]
            if kept:
                _keep(case, name, found)
        rows += found
        _show(found)
    return rows


def grow(case: str, parts: Parts) -> pathlib.Path:
    """The table of a case of hours whose rows hold on any machine; a part has a row whose case is its name. What the table has
    isn't measured again, and it is written after each part.
    """
    file = f"quantization_{case}.csv"
    rows = read(file)
    for name, measure in parts.items():
        if not any(each["case"] == name for each in rows):
            rows += (found := [_stamped(each) for each in measure()])
            _show(found)
            write(file, rows)
    return RESULTS / file


def forget(case: str) -> None:
    """What was kept of a case, once its table is written."""
    shutil.rmtree(_FOLDER / case, ignore_errors=True)


_STAMP = ("date", "paredown", "environment")


def _show(rows: Rows) -> None:
    for each in rows:
        print("  ".join(f"{key}={value}" for key, value in each.items() if key not in _STAMP), flush=True)


def _stamped(row: dict[str, Any]) -> dict[str, Any]:
    runtime = next((word for word in ("onnxruntime", "openvino") if str(row.get("case", "")).startswith(word)), "onnxruntime")
    where = "; ".join(f"{key}={value}" for key, value in environment(Target(runtime, threads=1)).items())
    return {**row, "date": datetime.date.today().isoformat(), "paredown": paredown.__version__, "environment": where}


def _file(case: str, name: str) -> pathlib.Path:
    return _FOLDER / case / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.json"


def _known(case: str, name: str) -> Rows | None:
    file = _file(case, name)
    found: Rows | None = json.loads(file.read_text()) if file.exists() else None
    return found


def _keep(case: str, name: str, rows: Rows) -> None:
    file = _file(case, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(rows))
    unfinished.replace(file)
