"""The steps as public functions: step(task, config, *, model=None) -> nn.Module. The input model is never touched."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import assert_never

import torch
from torch import nn

from paredown.core.artifact import Artifact
from paredown.core.errors import NothingToQuantizeError, OrderError, RecipeError, TaskError, TrainingDivergedError
from paredown.core.fields import choice, seed_number
from paredown.core.knowledge import Combine
from paredown.core.progress import Progress, silent
from paredown.core.steps import Distill, MixedBits, Prune, Quantize, Sparsify, Step
from paredown.core.target import Target
from paredown.core.training import Resume
from paredown.deploy.capabilities import has_vnni
from paredown.deploy.onnx import export_onnx
from paredown.distillation.recover import distill_model, forget_training
from paredown.distillation.teachers import Given, Panel
from paredown.measure.latency_table import LatencyTable
from paredown.pipeline.evaluate import in_parity
from paredown.pipeline.schedule import prune_by_schedule
from paredown.pipeline.stored_steps import forget
from paredown.pipeline.timings import layer_latencies
from paredown.pruning.sparse import sparsify_model
from paredown.quantization.assign import quantize_mixed
from paredown.quantization.dynamic import quantize_dynamic
from paredown.quantization.half import quantize_half
from paredown.quantization.model import QuantizedModel
from paredown.quantization.palette import quantize_palette
from paredown.quantization.qat import Learning, learned_scales
from paredown.quantization.static import quantize_model
from paredown.quantization.weight_only import quantize_weights
from paredown.task.task import Task, require_task, unwrapped
from paredown.train.loop import Loss
from paredown.train.seeds import seeded

_PRUNING = "pruning"  # a folder of a pruning that can be taken up


def prune(
    task: Task,
    config: Prune,
    *,
    model: nn.Module | None = None,
    target: Target | str | None = None,
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | str | Path | None = None,
) -> nn.Module:
    """The model with whole channels removed: same class, really smaller, equal to the masked original (checked).

    target: where latency is measured; needed where the config's goal is a latency, or its widths are the target's choice.
    resume: as `distill` takes it: of a schedule what was cut and trained already is taken up, and a training in the middle, that
    of a learned importance too.
    Raises NothingToPruneError where the goal can't be reached, OrderError for a quantized model, and what training raises.
    """
    _check(task, config, Prune, model, seed)
    place = None if resume is None else Resume.of(resume).within(_PRUNING)
    source = task.model if model is None else unwrapped(model)
    with not_diverged(place, forget):
        found = prune_resumable(task, config, source, target, seed=seed, progress=progress, resume=place)
    if place is not None:
        forget(place.folder)
    return found


def prune_resumable(
    task: Task,
    config: Prune,
    model: nn.Module,
    target: Target | str | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | None = None,
) -> nn.Module:
    """As `prune`; the folder of `resume`, which is this pruning's alone, stays until the result lies on disk."""
    if isinstance(model, QuantizedModel):
        raise OrderError(
            "a quantized model can't be pruned: its channels are fixed", remedy="prune first, then distill, then quantize"
        )
    return prune_by_schedule(task, config, model, target, seed=seed, progress=progress, resume=resume)


def distill(
    task: Task,
    config: Distill,
    *,
    model: nn.Module | None = None,
    teacher: Given = None,
    combine: Combine = "mean",
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | str | Path | None = None,
) -> nn.Module:
    """The model trained against a teacher; first its layers are solved, or batch norms recalibrated.

    teacher: None for `task.model`; a module of any class and widths that gives the same outputs; a sequence of some, whose
    outputs are combined ("mean", or "confidence": the surer a teacher is of a sample, the more it counts there); or "ema",
    the student's own moving average (`MovingAverage(decay)` for another decay than 0.999). `Cached(module, folder)` in place of
    a module keeps its outputs on disk. Of a model quantized with `scales` "lsq" or "pact" those are trained too.
    resume: a folder, or Resume(folder, ...): where it is kept how far the training got. After the process was killed the same
    call goes on from there, to the same weights, bit for bit on one thread. Emptied when the training has ended. The training
    batches must be the same: what they hold is not checked.
    Targets are never read where `config.hard_weight` is 0 (and `config.soft` isn't one that reads them).
    Raises NotTrainableError, TrainingDivergedError (the model given is as it was in either case); TaskError, RecipeError where
    teacher and student don't fit each other.
    """
    _check(task, config, Distill, model, seed)
    choice("combine", combine, Combine)
    several = isinstance(teacher, list | tuple | nn.ModuleList)
    if combine != "mean" and not several:
        raise RecipeError("combine is for several teachers", got=repr(combine), remedy="pass teacher=[one, other]")
    given = Panel(tuple(teacher), combine) if several else teacher  # type: ignore[arg-type]  # a sequence
    place = None if resume is None else Resume.of(resume)
    source = task.model if model is None else unwrapped(model)
    with not_diverged(place, forget_training):
        found = distill_resumable(task, config, source, given, seed=seed, progress=progress, resume=place)
    if place is not None:
        forget_training(place.folder)
    return found


@contextmanager
def not_diverged(place: Resume | None, forget: Callable[[Path], None]) -> Iterator[None]:
    """What a training that diverges has left is forgotten: it would diverge again from there."""
    try:
        yield
    except TrainingDivergedError:
        if place is not None:
            forget(place.folder)
        raise


def distill_resumable(
    task: Task,
    config: Distill,
    model: nn.Module,
    teacher: Given = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
    resume: Resume | None = None,
) -> nn.Module:
    """As `distill`; what is in the folder of `resume` at the end stays there, until the student lies on disk."""
    return distill_model(
        model, task, config, teacher=teacher, seed=seed, progress=progress, learning=_learning(model), resume=resume
    )


def _check(task: object, config: object, kind: type[Step], model: object, seed: object) -> None:
    """Raises TaskError or RecipeError where a step was given something else than a task, its own config, a module and a seed."""
    require_task(task)
    seed_number(seed)
    if model is not None and not isinstance(model, nn.Module):
        raise TaskError("model must be a torch.nn.Module", got=type(model).__name__, remedy="leave it out for the task's own")
    if not isinstance(config, kind):
        got = config.__name__ if isinstance(config, type) else type(config).__name__
        raise RecipeError(f"config must be a {kind.__name__}", got=got, remedy=f"write paredown.{kind.__name__}(...)")


def _learning(model: nn.Module) -> Callable[[nn.Module], AbstractContextManager[Callable[[Loss], Loss]]] | None:
    """What a quantized model learns besides its weights, as its config says."""
    if not isinstance(model, QuantizedModel) or model.config.scales == "fixed":
        return None
    return functools.partial(learned_scales, learning=Learning(model.config.scales))


def sparsify(
    task: Task, config: Sparsify, *, model: nn.Module | None = None, seed: int = 0, progress: Progress = silent
) -> nn.Module:
    """A copy of the model with single weights at zero; shapes stay, and what is zero stays zero while paredown trains the copy.

    In a training loop of your own call `paredown.keep_sparse_(model)` before it. seed: of what is drawn, also by a loader that
    shuffles. Raises NothingToPruneError where no weight would become zero, OrderError for a quantized model.
    """
    _check(task, config, Sparsify, model, seed)
    source = task.model if model is None else unwrapped(model)
    if isinstance(source, QuantizedModel):
        raise OrderError("a quantized model can't be made sparse", got="a QuantizedModel", remedy="sparsify first, then quantize")
    with seeded(seed):
        return sparsify_model(source, task, config, seed=seed, progress=progress)


def quantize(
    task: Task,
    config: Quantize,
    *,
    model: nn.Module | None = None,
    target: Target | str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> QuantizedModel:
    """The model in fewer bits, as `config.kind` says: batch norms folded, fake-quantize operators in its graph.

    target: the run's; a config that names none takes its runtime, and a limit of latency is measured there. seed: of what is
    drawn, by a loader that shuffles too.
    Raises NothingToQuantizeError where no weight can go on a grid, OrderError where the model is quantized already.
    """
    _check(task, config, Quantize, model, seed)
    source = task.model if model is None else unwrapped(model)
    if isinstance(source, QuantizedModel):
        raise OrderError("a model is quantized once", got="a QuantizedModel", remedy="quantize the float model it was made from")
    other = sorted({str(p.dtype) for p in source.parameters() if p.is_floating_point() and p.dtype is not torch.float32})
    if other:
        raise NothingToQuantizeError("weights must be float32 to go on a grid", got=other[0], remedy="call model.float()")
    if config.target is None and target is not None:
        config = replace(config, target=Target.of(target).runtime)
    with seeded(seed):
        return _quantized(task, config, source, target, progress)


def reduces_weights(config: Quantize) -> bool:
    """Whether 8-bit weights keep to 7 bits: asked for, or else where products of bytes would saturate on this machine.

    There unsigned weights, which keep their 8 bits, take half as long again in ONNX Runtime and gain nothing in top-1:
    benchmarks/quantization/arithmetic.py, benchmarks/results/quantization_arithmetic.csv.
    """
    return config.weights.range == "reduced" or (config.weights.range == "auto" and not has_vnni())


def _quantized(
    task: Task, config: Quantize, source: nn.Module, target: Target | str | None, progress: Progress
) -> QuantizedModel:
    """By the method that `config.kind` and its bits ask for."""
    reduced = reduces_weights(config)
    match config.kind:
        case "fp16" | "bf16":
            return quantize_half(source, task, config)
        case "palette":
            return quantize_palette(source, task, config, progress=progress)
        case "weight_only":
            return quantize_weights(source, task, config, progress=progress)
        case "dynamic":
            return quantize_dynamic(source, task, config, reduced=reduced)
        case "static" if isinstance(config.bits, MixedBits):
            timed = _layers_timed(task, source, config, target, reduced=reduced, progress=progress)
            return quantize_mixed(source, task, config, reduced=reduced, latencies=timed, progress=progress)
        case "static":
            return quantize_model(source, task, config, reduced=reduced, progress=progress)
        case _:
            assert_never(config.kind)


def _layers_timed(
    task: Task, model: nn.Module, config: Quantize, target: Target | str | None, *, reduced: bool, progress: Progress
) -> LatencyTable | None:
    """What a limit of latency needs to know; None where there is no such limit."""
    if not isinstance(config.bits, MixedBits) or config.bits.latency is None:
        return None
    where = target if target is not None else config.target
    if where is None:
        raise RecipeError("a limit of latency holds in a runtime", got="no target", remedy='write Quantize(target="onnxruntime")')
    return layer_latencies(task, model, config, Target.of(where), reduced=reduced, progress=progress)


def _check_learned(model: nn.Module) -> None:
    if isinstance(model, QuantizedModel) and model.config.scales != "fixed" and not model.learned:
        raise OrderError(
            "scales that are to be learned are trained before a file is made of them",
            got=f'scales="{model.config.scales}", not trained',
            remedy='call paredown.distill(task, paredown.Distill(), model=model) first, or quantize with scales="fixed"',
        )


def export(model: nn.Module, task: Task, *, target: Target | str = "onnxruntime", path: str | Path) -> Artifact:
    """The model as an ONNX file, checked against torch in the target's runtime at three batch sizes.

    Raises ExportError, or ParityError naming the first operator that diverges, and OrderError where scales that are to be trained
    ("lsq", "pact") weren't; then no file is left behind.
    """
    require_task(task)
    _check_learned(model)
    chosen, file = Target.of(target), Path(path)
    if file.is_dir() or file.suffix != ".onnx":
        raise RecipeError("path must be a file that ends in .onnx", got=file.name, remedy='write path="model.onnx"')
    unchecked = file.with_name(f".{file.name}.unchecked")
    try:
        artifact = export_onnx(model, task.inputs, unchecked, target=chosen, dynamic=task.dynamic)
        in_parity(model, task, chosen, unchecked, artifact.precision)
        unchecked.replace(file)
    finally:
        with contextlib.suppress(OSError):  # a folder that is none has been told of
            unchecked.unlink()
    return Artifact(str(file), chosen, artifact.precision, artifact.size_bytes, artifact.digest)
