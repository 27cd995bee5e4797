"""From a model to a candidate: export it, check the file against torch, and measure the file in the target's runtime."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paredown.core.artifact import Artifact, Candidate
from paredown.core.budget import Limit
from paredown.core.errors import MeasurementError, OutputError
from paredown.core.measurement import Measurement
from paredown.core.recipe import Recipe
from paredown.core.report import Parity
from paredown.core.target import Target
from paredown.deploy.children import command
from paredown.deploy.onnx import export_onnx
from paredown.deploy.parity import check_parity
from paredown.deploy.session import Session, load
from paredown.deploy.stopwatch import rounds
from paredown.measure.cost import count_macs, count_parameters
from paredown.measure.latency import PairedLatency, paired_latency
from paredown.measure.memory import peak_memory
from paredown.measure.quality import Scores, drop, quality, score
from paredown.task.batches import Inputs, apply_tensors, arranged, call, device_of, each, evaluating, tensors
from paredown.task.task import Task

Arrays = tuple[np.ndarray[Any, Any], ...]
_ATTEMPTS, _DRIFT = 3, 0.1


def export_checked(model: nn.Module, task: Task, target: Target, path: Path) -> tuple[Artifact, tuple[Parity, ...]]:
    """The exported file and its parity rows. Raises ExportError or ParityError."""
    artifact = export_onnx(model, task.inputs, path, target=target, dynamic=task.dynamic)
    return artifact, in_parity(model, task, target, path, artifact.precision)


def in_parity(model: nn.Module, task: Task, target: Target, path: Path, precision: str) -> tuple[Parity, ...]:
    """The parity rows of a file. Samples, where they are needed, are those of the validation split. Raises ParityError."""
    samples = _Samples(task, device_of(model))
    return check_parity(model, task.inputs, path, target, dynamic=task.dynamic, precision=precision, more=samples)


@dataclass(frozen=True)
class _Samples:
    """Inputs of the validation split, read when they are iterated."""

    task: Task
    device: torch.device

    def __iter__(self) -> Iterator[Inputs]:
        for inputs, _ in each(self.task.validation, "validation", self.device):
            yield arranged(inputs, self.task.inputs)


def predictor(session: Session, task: Task) -> Callable[[Inputs], Any]:
    """The file as a function of torch inputs, giving outputs in the form in which the model gives them."""
    with torch.no_grad(), evaluating(task.model):
        parts, form = pytree.tree_flatten(call(task.model, task.inputs))

    def predict(inputs: Inputs) -> Any:
        outputs = session(*arrays_of(arranged(inputs, task.inputs)))
        arrays = iter(outputs if isinstance(outputs, tuple) else (outputs,))
        whole = [torch.from_numpy(next(arrays)) if isinstance(part, Tensor) else part for part in parts]  # None is in no file
        return pytree.tree_unflatten(whole, form)

    return predict


def arrays_of(inputs: Inputs) -> Arrays:
    """The tensors of the inputs as arrays, in the order of the file's inputs."""
    return tuple(tensor.detach().cpu().numpy() for tensor in tensors(inputs))


def compare_latency(
    task: Task,
    baseline: Path,
    candidate: Path,
    target: Target,
    *,
    pairs: int = 60,
    limit: Limit | None = None,
    confidence: float = 0.95,
) -> PairedLatency:
    """Paired latency of two files, on the example inputs repeated to the target's batch: the ratio is candidate / baseline.

    limit: of the latency, ratio or ms, which it is to be told from, at the price of more rounds.
    """
    arrays = arrays_of(apply_tensors(task.inputs, lambda tensor: _tiled(tensor, target.batch)))
    with rounds(baseline, candidate, target, arrays) as timed:
        return paired_latency(timed, pairs=pairs, limit=limit, confidence=confidence, device=str(target))


def latency_of(
    task: Task, target: Target, *, baseline: nn.Module | None = None, ms: float | None = None, upper: bool = False
) -> Callable[[nn.Module], float]:
    """A function from a model to its latency in ms, for selection under a latency goal; every call exports to a scratch folder.

    Each latency is the paired ratio against a baseline (None: the task's own model) times that model's latency (`ms`; None: at
    the first call), so that a machine that slows down meanwhile doesn't mislead. upper: the upper end of that ratio's interval,
    which a limit is held against. What is to be told apart should be like the
    baseline: int8 gains on fp32 in one minute what it doesn't in the next.
    """
    folder = tempfile.TemporaryDirectory(prefix="paredown-")
    first = Path(folder.name) / "baseline.onnx"
    reference = [] if ms is None else [ms]

    def measure(model: nn.Module) -> float:
        if not first.exists():
            export_onnx(baseline or task.model, task.inputs, first, target=target, dynamic=task.dynamic)
        path = Path(folder.name) / "candidate.onnx"
        export_onnx(model, task.inputs, path, target=target, dynamic=task.dynamic)
        result = compare_latency(task, first, path, target)
        reference.append(result.a.value)
        return (result.ratio.upper if upper else result.ratio.value) * reference[0]

    return measure


def score_file(task: Task, path: Path, target: Target, split: str) -> Scores:
    """The metric of a file over a split of the task, per sample where the metric is."""
    return score(predictor(load(path, target), task), task, split)


def candidate_of(
    model: nn.Module,
    task: Task,
    artifact: Artifact,
    *,
    recipe: Recipe,
    baseline: tuple[Artifact, Scores] | None,
    confidence: float,
    limit: Limit | None = None,
) -> tuple[Candidate, Scores]:
    """Everything measured on one file. baseline: file and scores that it is held against; None: it is the baseline itself.

    limit: of the latency, which it is to be told from.
    """
    target, path = artifact.target, Path(artifact.path)
    scores = score_file(task, path, target, "validation")
    first, first_scores = baseline or (artifact, scores)
    latency = compare_latency(task, Path(first.path), path, target, limit=limit, confidence=confidence)
    one = Measurement("latency_ratio", 1.0, "x", latency.ratio.n, 1.0, 1.0, confidence, str(target))
    found = Candidate(
        name=str(recipe),
        recipe=recipe,
        artifact=artifact,
        quality=quality(scores, confidence),
        drop=drop(first_scores, scores, confidence),
        latency=latency.b,
        latency_ratio=latency.ratio if baseline else one,
        size_ratio=artifact.size_bytes / first.size_bytes,
        macs=count_macs(model, task.inputs),
        parameters=count_parameters(model),
    )
    return found, scores


def with_final(candidate: Candidate, task: Task, baseline: Candidate, confidence: float) -> tuple[Candidate, Measurement]:
    """A candidate with what is measured only once, at the end: memory, the test split, and its latency afresh.

    The latency that chose a candidate flatters it (it was the smallest of several), so the winner is timed again; and once more,
    up to three times in all, while the baseline itself takes clearly longer or shorter than when the run began: then the machine
    is in another state than the one that everything was chosen in.
    Second, the baseline's latency in the same pairs: times of another hour don't stand beside each other.
    """
    artifact = candidate.artifact
    path, target = Path(artifact.path), artifact.target
    final, timed = dataclasses.replace(candidate, memory=_peak_memory(path, target)), baseline.latency
    same = artifact.digest == baseline.artifact.digest
    if not same:
        for _ in range(_ATTEMPTS):
            latency = compare_latency(task, Path(baseline.artifact.path), path, target, pairs=100, confidence=confidence)
            if not _apart(latency.a, baseline.latency):
                break
        final, timed = dataclasses.replace(final, latency=latency.b, latency_ratio=latency.ratio), latency.a
    if task.test is None:
        return final, timed
    before = score_file(task, Path(baseline.artifact.path), target, "test")
    after = before if same else score_file(task, path, target, "test")
    tested = dataclasses.replace(final, test_quality=quality(after, confidence), test_drop=drop(before, after, confidence))
    return tested, timed


def _apart(one: Measurement, other: Measurement) -> bool:
    """Whether two latencies of one file differ by more than a tenth and beyond their intervals."""
    disjoint = one.lower > other.upper or other.lower > one.upper
    return disjoint and abs(one.value - other.value) > _DRIFT * min(one.value, other.value)


def _peak_memory(path: Path, target: Target) -> Measurement | None:
    """Of inference in a process of its own; None where this system can't tell: no run ends for a figure that no budget names."""
    child = [*command("paredown.deploy.child"), str(path), "--runtime", target.runtime]
    child += ["--batch", str(target.batch), "--threads", str(target.threads)]
    try:
        return peak_memory(child)
    except MeasurementError:
        return None


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder next to `beside`, on the same disk, gone afterwards whatever happens; so are the empty folders made to hold it.

    Raises OutputError where it can't be made.
    """
    made = [parent for parent in beside.parents if not parent.exists()]
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{beside.name}-", dir=beside.parent))
    except OSError as error:
        raise OutputError(
            "out must be a folder that can be written to", got=f"{beside.parent}: {error.strerror}", remedy="name another"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # it holds something
                parent.rmdir()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises OutputError where what is written within can't be: on a full disk, say."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(
            "the folder must be one that can be written to, with room for what is written",
            got=f"{folder.parent}: {getattr(error, 'strerror', None) or error}",
            remedy="make room there, or name another",
        ) from error


def _tiled(tensor: Tensor, batch: int) -> Tensor:
    """The samples of a tensor repeated, or cut, to `batch`. Raises MeasurementError where that doesn't fit into memory."""
    if tensor.dim() == 0:
        return tensor
    try:
        return tensor[torch.arange(batch) % tensor.shape[0]]
    except RuntimeError as error:
        raise MeasurementError(
            "a batch must fit into memory", got=f"{batch:,} samples", remedy="choose a smaller batch"
        ) from error
