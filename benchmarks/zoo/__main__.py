"""Runs the zoo and writes benchmarks/results/zoo.csv, a row a model. `python -m benchmarks.zoo [--only PATTERN] ...`

Each model runs in two processes of its own, ours and Torch-Pruning's, each with a time and a memory limit. A model that has a row
is not run again, unless --again is given. What a row states and which settings it was made with: benchmarks/zoo/child.py.
"""

import argparse
import collections
import concurrent.futures
import csv
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import signal
import tempfile
from typing import Any

from benchmarks.record import RESULTS, write
from benchmarks.zoo import child
from benchmarks.zoo.models import Entry, entries, named
from paredown.core.target import Target

CSV = "zoo.csv"
_CONTEXT = multiprocessing.get_context("forkserver")  # children are forked from a process that has imported torch already
_PATIENCE = 20  # times its CPU seconds that a process may take by the clock: the machine may have other work, or be paused
_PACKAGES = ("torchvision", "timm", "transformers", "torch-pruning")


def main() -> None:
    options = _options()
    os.environ["OMP_NUM_THREADS"] = "1"
    _CONTEXT.set_forkserver_preload(["benchmarks.zoo.child", "torchvision", "timm", "torch_pruning", "onnxruntime", "onnxscript"])
    rows = _read()
    wanted = list(named(options.only) if options.only else entries())[: options.limit]
    todo = [e for e in wanted if options.again or _key(e) not in rows]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, entry, options) for entry in todo]):
            row = future.result()
            rows[row["source"], row["model"]] = row
            _save(rows)
            print(_line(row), flush=True)
    print(summary(list(rows.values())))


def run(entry: Entry, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one model."""
    row = {"source": entry.source, "model": entry.name, "versions": _versions()}
    row |= _child("ours", entry, options)
    if not options.no_peer:
        row |= _child("peer", entry, options)
    return {key: value for key, value in row.items() if key != "stage"}


def _child(part: str, entry: Entry, options: argparse.Namespace) -> dict[str, Any]:
    """What the child wrote; where it ended early, that it failed and the reason."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "row.json"
        seconds = options.peer_timeout if part == "peer" else options.timeout
        limits = {"seconds": seconds, "gigabytes": options.memory}
        work = child.Work(part, entry.source, entry.name, str(file), export=not options.no_export, **limits)
        process = _CONTEXT.Process(target=child.main, args=(work,))
        process.start()
        process.join(_PATIENCE * seconds)
        in_time = process.exitcode not in {None, -signal.SIGXCPU, -signal.SIGKILL}
        ending = f"exit status {process.exitcode}" if in_time else f"more than {seconds} s"
        process.kill()
        process.join()
        found = json.loads(file.read_text()) if file.exists() else {}
    return found | child.early_end(part, found, ending)


def summary(rows: list[dict[str, Any]]) -> str:
    """Counts by source, and the reasons of what failed, most frequent first."""
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        part = [row for row in rows if row["source"] == source]
        counts = {key: sum(_true(row.get(key)) for row in part) for key in ("ok", "halved", "onnx_ok", "parity_ok", "tp_ok")}
        lines.append(f"{source}: {len(part)} models; " + ", ".join(f"{key} {value}" for key, value in counts.items()))
    reasons = collections.Counter(str(row["reason"])[:90] for row in rows if not _true(row.get("ok")))
    return "\n".join([*lines, *(f"{n:4d}  {reason}" for reason, n in reasons.most_common())])


def _line(row: dict[str, Any]) -> str:
    if not _true(row.get("ok")):
        return f"{row['source']}/{row['model']}: NOT OK {row.get('reason')}"
    part = row["macs_0.7"] / row["macs"]
    return (
        f"{row['source']}/{row['model']}: ok, {row['groups']} groups, MACs {part:.2f}x, "
        f"analysis {row['analysis_seconds']} s, onnx {row.get('onnx_ok', '-')}, parity {row.get('parity_ok', '-')}"
    )


def _true(value: Any) -> bool:
    return str(value) == "True"


def _key(entry: Entry) -> tuple[str, str]:
    return entry.source, entry.name


def _read() -> dict[tuple[str, str], dict[str, Any]]:
    path = RESULTS / CSV
    if not path.exists():
        return {}
    with path.open(newline="") as stream:
        return {(row["source"], row["model"]): row for row in csv.DictReader(stream)}


def _save(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """In the order of the zoo, whatever order they ran in."""
    order = {_key(entry): i for i, entry in enumerate(entries())}
    write(CSV, sorted(rows.values(), key=lambda row: order.get((row["source"], row["model"]), len(order))), Target(threads=1))


def _versions() -> str:
    return "; ".join(f"{name}={importlib.metadata.version(name)}" for name in _PACKAGES)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--only", metavar="PATTERN", help='part of "source/model", or a pattern with * and ?')
    parser.add_argument("--again", action="store_true", help="also what has a row already")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (timings suffer)")
    parser.add_argument("--limit", type=int, help="only the first so many")
    parser.add_argument("--timeout", type=int, default=300, help="CPU seconds for a model")
    parser.add_argument(
        "--peer-timeout", type=int, default=60, help="the same for Torch-Pruning, which doesn't end on every model"
    )
    parser.add_argument("--memory", type=float, default=12, help="gigabytes for each of them")
    parser.add_argument("--no-export", action="store_true", help="neither write nor run an ONNX file")
    parser.add_argument("--no-peer", action="store_true", help="without Torch-Pruning")
    return parser.parse_args()


if __name__ == "__main__":
    main()
