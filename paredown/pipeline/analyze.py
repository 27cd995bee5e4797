"""`analyze(task)`: where a model stands, what of it can be pruned, and what can't, with the reason. Changes nothing."""

import math
import tempfile
import time
from pathlib import Path

from paredown.core.progress import Progress, silent
from paredown.core.recipe import Recipe
from paredown.core.report import Barrier, GroupRow, Profile, SensitivityCurve
from paredown.core.steps import Quantize
from paredown.core.target import Target
from paredown.graph.groups import Groups, dependency_groups
from paredown.measure.quality import Scores, samples_needed
from paredown.pipeline.diagnose import diagnose
from paredown.pipeline.evaluate import candidate_of, export_checked
from paredown.pruning.sensitivity import sensitivity_curves, weight_sensitivity_curves
from paredown.pruning.sparsity.layers import sparse_layers
from paredown.task.task import Task, require_task

_POINT = 0.01  # the drop that the warning about small validation sets speaks of
_CONFIDENCE = 0.95


def analyze(
    task: Task,
    target: Target | str = "onnxruntime",
    *,
    sensitivity: bool = False,
    quantization: Quantize | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Profile:
    """Quality, latency, bytes and MACs of the task's model as an fp32 file, its dependency groups and its barriers.

    sensitivity: also mask more and more of each group, and of each layer's weights, by itself, and evaluate (`sensitivity_of`).
    quantization: also quantize the model so, and tell what that costs each layer, and what of it runs on integers.
    Raises TraceError, ExportError or ParityError where the model can't be exported rightly.
    """
    began = time.monotonic()
    require_task(task)
    chosen = Target.of(target)
    groups = dependency_groups(task.model, task.inputs, dynamic=task.dynamic, protect=task.protect)
    with tempfile.TemporaryDirectory(prefix="paredown-") as folder:
        artifact, _ = export_checked(task.model, task, chosen, Path(folder) / "model.onnx")
        found, scores = candidate_of(task.model, task, artifact, recipe=Recipe(), baseline=None, confidence=_CONFIDENCE)
    curves = sensitivity_of(task, groups, seed=seed, progress=progress) if sensitivity else ()
    diagnosis = None if quantization is None else diagnose(task, quantization, chosen, progress=progress)
    return Profile(
        task=task.name,
        target=chosen,
        metric=str(task.scorer),
        quality=found.quality,
        latency=found.latency,
        size_bytes=artifact.size_bytes,
        macs=found.macs,
        parameters=found.parameters,
        groups=_rows(groups),
        barriers=groups.barriers,
        warnings=_warnings(groups, scores),
        seconds=time.monotonic() - began,
        sensitivity=curves,
        quantization=() if diagnosis is None else diagnosis.layers,
        operators=None if diagnosis is None else diagnosis.operators,
    )


def prunable(task: Task) -> tuple[tuple[GroupRow, ...], tuple[Barrier, ...]]:
    """What can be pruned, and what can't, of a model that perhaps can't be exported. Raises TraceError."""
    groups = dependency_groups(task.model, task.inputs, dynamic=task.dynamic, protect=task.protect)
    return _rows(groups), groups.barriers


def sensitivity_of(task: Task, groups: Groups, *, seed: int = 0, progress: Progress = silent) -> tuple[SensitivityCurve, ...]:
    """Of the task's own torch model, on the first validation samples: one curve per group, as channels are masked, then one per
    layer, as single weights are. None where there is no group, no layer.

    Takes five passes over these samples for each curve. Raises NotTrainableError where nothing requires a gradient.
    """
    curves = sensitivity_curves(task.model, task, groups, seed=seed, progress=progress) if groups.groups else ()
    if sparse_layers(task.model, task.protect):
        curves += weight_sensitivity_curves(task.model, task, seed=seed, progress=progress)
    return curves


def _rows(groups: Groups) -> tuple[GroupRow, ...]:
    """Each group with its share of the MACs: of the products in which its channels stand."""
    costs = [(factor * math.prod(extent.size for extent in extents), extents) for factor, extents in groups.products]
    total = sum(cost for cost, _ in costs) or 1.0
    shares = [0.0] * len(groups.groups)
    for cost, extents in costs:
        for index in {owner for extent in extents for owner, _, _ in extent.owners}:
            shares[index] += cost / total
    return tuple(GroupRow(group.name, group.size, share) for group, share in zip(groups.groups, shares, strict=True))


def _warnings(groups: Groups, scores: Scores) -> tuple[str, ...]:
    """What to mind before compressing."""
    lines: list[str] = []
    needed = samples_needed(_POINT, _CONFIDENCE)
    if scores.is_binary and scores.n < needed:
        lines.append(f"{scores.n} validation samples can't certify a drop of one point: that takes {needed}")
    if not groups.groups:
        lines.append("no channel of this model can be pruned: the barriers say why")
    return tuple(lines)
