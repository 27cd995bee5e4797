"""One model of the zoo in a process of its own. What it finds goes to a file, rewritten after every stage.

A model is ok where it could be analysed, something could be removed, and the cuts at 0.3 and 0.7 equal the masked original.
No data, no training. How a cut is chosen: benchmarks/zoo/cuts.py.
Seconds are CPU seconds of one thread.
"""

import contextlib
import json
import os
import pathlib
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.zoo.cuts import RATIOS, cut_to
from benchmarks.zoo.models import build
from paredown.core.errors import NothingToPruneError, ParedownError
from paredown.deploy.onnx import export_onnx
from paredown.deploy.parity import check_parity
from paredown.graph.collect import Groups
from paredown.graph.groups import dependency_groups
from paredown.measure.cost import count_macs, count_parameters
from paredown.task.batches import Inputs

_REASON = 300  # characters
_EXPORT_FLAGS = {"onnx": "onnx_ok", "parity": "parity_ok"}  # stage -> what is false where it fails; elsewhere the whole row


@dataclass(frozen=True)
class Work:
    """part: "ours" or "peer" (Torch-Pruning). file: a JSON object is written there. seconds (of CPU), gigabytes: the process
    may not have more."""

    part: str
    source: str
    name: str
    file: str
    export: bool = True
    seconds: int = 300
    gigabytes: float = 12


class Row:
    """What is known of a model so far, on disk."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.values = path, dict[str, Any]()

    def add(self, **values: Any) -> None:
        self.values |= {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
        self.path.write_text(json.dumps(self.values))

    @contextlib.contextmanager
    def stage(self, name: str, flag: str = "ok") -> Iterator[None]:
        """An error in it is the reason why `flag` is false. Raises it again."""
        self.add(stage=name)
        try:
            yield
        except Exception as error:
            self.add(**_failed(flag, f"{name}: {type(error).__name__}: {error}"))
            raise


def _failed(flag: str, reason: str) -> dict[str, Any]:
    return {flag: False, f"{flag}_reason" if flag != "ok" else "reason": reason[:_REASON]}


def early_end(part: str, found: dict[str, Any], ending: str) -> dict[str, Any]:
    """What a process that was ended adds to what it had found: that the stage it was in failed, and why. Nothing where it got to
    the end, or where the stage has a reason already."""
    stage = found.get("stage", "start")
    flag = "tp_ok" if part == "peer" else _EXPORT_FLAGS.get(stage, "ok")
    return {} if stage == "done" or found.get(flag) is False else _failed(flag, f"{stage}: {ending}")


def ours(source: str, name: str, row: Row, export: bool = True) -> None:
    with row.stage("build"):
        model, inputs = build(source, name)
        row.add(parameters=count_parameters(model), macs=count_macs(model, inputs), input=_form(inputs))
    with row.stage("analyse"):
        groups = _analyse(model, inputs, row)
    pruned = model
    for ratio in RATIOS:
        with row.stage(f"prune {ratio}"):
            pruned, error = cut_to(model, inputs, groups, ratio)
            row.add(**{
                f"parameters_{ratio}": count_parameters(pruned),
                f"macs_{ratio}": count_macs(pruned, inputs),
                f"error_{ratio}": error,
            })  # fmt: skip
    row.add(ok=True, reason="", halved=row.values["macs_0.7"] <= 0.5 * row.values["macs"])
    if export:
        _export(pruned, inputs, row)
    row.add(stage="done")


def peer(source: str, name: str, row: Row) -> None:
    """Torch-Pruning's graph, the time of it and of listing its groups; then its magnitude pruner at a channel ratio of 0.5."""
    import torch_pruning as tp

    with row.stage("build", "tp_ok"):
        model, inputs = build(source, name)
        before = count_macs(model, inputs)
        last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    with row.stage("graph", "tp_ok"):
        start = time.process_time()
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
        row.add(tp_graph_seconds=time.process_time() - start)
        found = list(graph.get_all_groups(ignored_layers=last))
        row.add(tp_graph_and_groups_seconds=time.process_time() - start, tp_groups=len(found))
    with row.stage("prune", "tp_ok"):
        importance = tp.importance.MagnitudeImportance(p=2)
        tp.pruner.BasePruner(model, inputs, importance=importance, pruning_ratio=0.5, ignored_layers=last).step()
        if count_macs(model, inputs) == before:
            raise ValueError("nothing was pruned")
        row.add(tp_ok=True, tp_ok_reason="", tp_macs_ratio=count_macs(model, inputs) / before)
    row.add(stage="done")


def analysed(model: nn.Module, inputs: Inputs) -> tuple[Groups, float, float]:
    """Groups, the seconds of our own analysis, and apart from them those of torch.export."""
    traced = 0.0
    export = torch.export.export

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal traced
        start = time.process_time()
        try:
            return export(*args, **kwargs)
        finally:
            traced += time.process_time() - start

    start = time.process_time()
    with mock.patch("torch.export.export", timed):
        groups = dependency_groups(model, inputs)
    return groups, time.process_time() - start - traced, traced


def _analyse(model: nn.Module, inputs: Inputs, row: Row) -> Groups:
    groups, own, traced = analysed(model, inputs)
    row.add(analysis_seconds=own, export_seconds=traced)
    reasons = sorted({f"{b.operator}: {b.reason}" for b in groups.barriers if b.operator != "output"})
    row.add(groups=len(groups.groups), barriers=len(groups.barriers), barrier_reasons=" | ".join(reasons)[:_REASON])
    if not groups.groups:
        raise NothingToPruneError("a model must have something to remove", got=f"{len(groups.barriers)} barriers", remedy="-")
    return groups


def _export(pruned: nn.Module, inputs: Inputs, row: Row) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ParedownError):
        file = pathlib.Path(folder) / "model.onnx"
        with row.stage("onnx", _EXPORT_FLAGS["onnx"]):
            export_onnx(pruned, inputs, file, target="onnxruntime")
            row.add(onnx_ok=True)
        with row.stage("parity", _EXPORT_FLAGS["parity"]):
            found = check_parity(pruned, inputs, file, "onnxruntime", precision="fp32")
            row.add(parity_ok=True, parity_error=max(p.error for p in found))


def _form(inputs: Any) -> str:
    if isinstance(inputs, torch.Tensor):
        return "x".join(map(str, inputs.shape))
    return " ".join(_form(x) for x in (inputs.values() if isinstance(inputs, dict) else inputs))


def main(work: Work) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (int(work.gigabytes * 2**30), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (work.seconds, work.seconds + 5))
    torch.set_num_threads(1)
    row = Row(pathlib.Path(work.file))
    with (
        contextlib.suppress(Exception),  # recorded by the stage it occurred in
        pathlib.Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        if work.part == "ours":
            ours(work.source, work.name, row, export=work.export)
        else:
            peer(work.source, work.name, row)
