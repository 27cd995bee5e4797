"""The main job: from a task and a budget to a file within it, with the proof.

    baseline -> (plan -> apply -> recover -> export -> verify and measure -> gate)* -> choose -> report

A stage is on disk before the next begins, and so is each step of the one that runs, and how far its distillation got: a killed
run is taken up where it stopped.
"""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from paredown.core.artifact import Artifact, Candidate
from paredown.core.budget import Budget
from paredown.core.effort import Effort
from paredown.core.errors import (
    BudgetError,
    CertificationError,
    NothingToPruneError,
    NothingToQuantizeError,
    NotTrainableError,
    OutputError,
    ParedownError,
    RecipeError,
    TrainingDivergedError,
)
from paredown.core.fields import seed_number
from paredown.core.progress import Progress, silent
from paredown.core.recipe import Recipe
from paredown.core.report import Barrier, Parity, Report, SensitivityCurve, Stage
from paredown.core.steps import ChannelAttention, Distill, Prune, Quantize, Slimming, Sparsify
from paredown.core.target import Target
from paredown.core.training import Resume, Training
from paredown.deploy.capabilities import environment, executed_operators
from paredown.distillation.suited import recovering
from paredown.graph.groups import dependency_groups
from paredown.graph.manifest import folds_of
from paredown.measure.cost import compressed_bytes
from paredown.measure.quality import Scores, samples_needed, smallest_drop
from paredown.pipeline.analyze import sensitivity_of
from paredown.pipeline.apply import apply
from paredown.pipeline.checkpoint import load_checkpoint
from paredown.pipeline.diagnose import INTEGER_KINDS, diagnosed
from paredown.pipeline.evaluate import candidate_of, compare_latency, export_checked, score_file, scratch_folder, with_final
from paredown.pipeline.front import choose, pareto
from paredown.pipeline.gate import Verdict, allowed, binding, judge, reached, violations
from paredown.pipeline.plan import Outcome, Planner, int8_steps
from paredown.pipeline.screen import Screen
from paredown.pipeline.store import Existing, Store, Stored, identity
from paredown.pipeline.widths import widths
from paredown.quantization.bits import layer_bits
from paredown.quantization.model import QuantizedModel
from paredown.quantization.weight_only import looks_up
from paredown.render.html import render_html
from paredown.task.task import Task, require_task
from paredown.train.batchnorm import require_two_samples

_EFFORT = Effort(3, "epochs")
_LEAST_SAMPLES = 30
_LAYER_SAMPLES = 16  # of training data, on which a quantized result is looked at layer by layer


def compress(  # noqa: PLR0913 (the public interface: what a run depends on)
    task: Task,
    budget: Budget,
    *,
    target: Target | str = "onnxruntime",
    out: str | Path,
    recipe: Recipe | None = None,
    effort: Effort | Training | str = _EFFORT,
    seed: int = 0,
    progress: Progress = silent,
    existing: Existing = "refuse",
    sensitivity: bool = False,
) -> Report:
    """The smallest drop that meets the budget, as a file in `out`, with the report of how it was found.

    recipe: a fixed one; None: planned from the budget. effort: of each recovery that the plan holds; a Training says how it
    trains, too.
    existing: what to do where `out` is not empty: refuse, resume (take up finished stages and the one that was running), replace.
    sensitivity: put into the report what masking more and more of each dependency group, and of each layer's weights, costs
    (`sensitivity_of`).

    Raises CertificationError where the validation set is too small for the drop asked; OutputError; and what a step raises.
    Not meeting the budget is no error: `report.met` is False, `report.best` the nearest point, `report.binding` says what binds.
    """
    started = time.monotonic()
    _check_arguments(task, budget, seed)
    fixed = None if recipe is None else _with_steps(Recipe.of(recipe))
    chosen, recovery = Target.of(target), effort if isinstance(effort, Training) else Training(effort=Effort.parse(effort))
    if task.recover is None and task.train_step is None and _trains(fixed):  # what these do to a model is theirs
        require_two_samples(task.model, task.train)
    store = Store.open(out, identity(task, budget, chosen, seed), existing)
    run = _Run(task, budget, chosen, seed, progress, store)
    run.measure_baseline(fresh=existing == "replace")
    if existing == "replace":
        store.clear(keep=Recipe())
    groups = dependency_groups(task.model, task.inputs, dynamic=task.dynamic, protect=task.protect)
    curves = sensitivity_of(task, groups, seed=seed, progress=progress) if sensitivity else ()
    barriers = groups.barriers
    if fixed is not None:
        _follow(run, fixed)
    else:
        barriers += _plan(run, recovery)
    return _finish(run, _choice(run, planned=fixed is None), barriers, curves, started)


def _check_arguments(task: object, budget: object, seed: object) -> None:
    """Raises TaskError, BudgetError or RecipeError where an argument is something else."""
    require_task(task)
    if not isinstance(budget, Budget):
        raise BudgetError(
            "budget must be a Budget", got=type(budget).__name__, remedy='write paredown.Budget(max_drop=0.01, size="0.4x")'
        )
    seed_number(seed)


def _with_steps(recipe: Recipe) -> Recipe:
    """Raises RecipeError for an empty one: a run that would change nothing."""
    if not recipe.steps:
        raise RecipeError("a recipe to follow must have steps", got="none", remedy="leave recipe out, for a planned one")
    return recipe


def _trains(recipe: Recipe | None) -> bool:
    """None: planned; a plan may train."""
    steps = () if recipe is None else recipe.steps
    prunings = [step for step in steps if isinstance(step, Prune)]
    within = any(p.schedule.steps > 1 or isinstance(p.importance, ChannelAttention | Slimming) for p in prunings)
    return recipe is None or within or any(isinstance(step, Distill) for step in steps)


@dataclass
class _Run:
    """What a run knows: its settings, the baseline, and the stages so far, by the key of their recipe."""

    task: Task
    budget: Budget
    target: Target
    seed: int
    progress: Progress
    store: Store
    stages: dict[str, Stored] = field(default_factory=dict)
    scores: Scores | None = None

    @property
    def baseline(self) -> Candidate:
        return self.stages[self.store.key(Recipe())].stage.candidate

    def measure_baseline(self, *, fresh: bool = False) -> None:
        """The task's own model as a file, measured; fresh: even where that was done. Raises CertificationError before anything is
        written.
        """
        self.progress("baseline", 0.0)
        stored = None if fresh else self.store.find(Recipe())
        if stored is None:
            with scratch_folder(self.store.folder(Recipe())) as scratch:
                began = time.monotonic()
                artifact, parity = export_checked(self.task.model, self.task, self.target, scratch / "model.onnx")
                candidate, self.scores = candidate_of(
                    self.task.model, self.task, artifact, recipe=Recipe(), baseline=None, confidence=self.budget.confidence
                )
                _require_certifiable(self.budget, candidate, self.scores)
                stage = Stage(
                    "baseline", Recipe(), candidate, True, "the baseline", candidate.latency_ratio, 1.0, time.monotonic() - began
                )
                rows = tuple(dataclasses.replace(row, candidate="baseline") for row in parity)
                stored = self.store.save(Recipe(), Stored(stage, rows), self.task.model, scratch / "model.onnx")
        self.stages[self.store.key(Recipe())] = stored
        self.progress("baseline", 1.0)

    def baseline_pair(self) -> tuple[Artifact, Scores]:
        """File and scores of the baseline; after a resume the scores are taken again from the file."""
        artifact = self.baseline.artifact
        if self.scores is None:
            self.scores = score_file(self.task, Path(artifact.path), self.target, "validation")
        return artifact, self.scores

    def model_of(self, candidate: Candidate) -> nn.Module:
        return self.task.model if not candidate.recipe.steps else load_checkpoint(str(candidate.checkpoint), self.task.model)


def _require_certifiable(budget: Budget, baseline: Candidate, scores: Scores) -> None:
    """Raises CertificationError where even a result without a single flip could not be certified; and, of a metric that isn't
    right or wrong, where a bootstrap interval of so few samples would be too narrow to be trusted.
    """
    limit = budget.drop_limit(baseline.quality.value)
    if not scores.is_binary:
        if scores.n < _LEAST_SAMPLES:
            raise CertificationError(
                f"the interval of a drop takes at least {_LEAST_SAMPLES} validation samples", got=scores.n, remedy="add samples"
            )
        return
    if limit == 0 and isinstance(budget.max_drop, str) and baseline.quality.value == 0:
        raise CertificationError(
            "a drop in per cent of the baseline takes a baseline above 0", got=f"{baseline.quality.metric} of 0",
            remedy="check the metric and the labels, or give max_drop in metric units",
        )  # fmt: skip
    needed = samples_needed(limit, budget.confidence)
    if scores.n < needed:
        raise CertificationError(
            f"a drop of at most {limit:.3g} at {budget.confidence:.0%} takes {needed:,} validation samples", got=f"{scores.n:,}",
            remedy=f"add samples, or allow max_drop={smallest_drop(scores.n, budget.confidence):.3g}, which these can certify",
        )  # fmt: skip


def _plan(run: _Run, training: Training) -> tuple[Barrier, ...]:
    """Proposals until the budget is met or the planner has no more to try. -> what kept it from trying more."""
    screen = Screen(run.task, run.baseline, run.target, run.store, run.seed, run.progress)
    limits = allowed(run.budget, run.baseline)
    int8 = int8_steps(limits, tables=looks_up(run.task.model, run.task.inputs))
    planner = Planner(limits, training, screen, recovery=recovering(run.task), int8=int8)
    try:
        _propose(run, planner, training)
    except NotTrainableError as error:  # all that is left needs gradients: to rank channels, or to recover
        return (Barrier("training", "the whole model", f"{error}: without it no cut can be chosen and recovered"),)
    return ()


def _propose(run: _Run, planner: Planner, training: Training) -> None:
    """Carries out what the planner asks for, and tells it what that came to."""
    while (proposal := planner.ask()) is not None:
        try:
            planner.tell(_outcome(run, proposal, _follow(run, proposal)))
        except NothingToQuantizeError:
            planner.tell_unquantizable()
        except NothingToPruneError:
            planner.tell(Outcome(dict.fromkeys(planner.limits, 1.0), drop_met=False, possible=False))
        except TrainingDivergedError as error:
            lower = f"learning_rate={training.learning_rate / 4:g}"
            remedy = f"pass effort=Training({lower}), on the command line --learning-rate {training.learning_rate / 4:g}"
            raise TrainingDivergedError(error.rule, got=error.got, remedy=remedy) from error


def _outcome(run: _Run, proposal: Recipe, final: Stored) -> Outcome:
    """What the last stage of a proposal measured, whether or not the gate kept it; where its pruning was rolled back, that."""
    complete = final.stage.candidate.recipe == proposal
    done = final if complete else run.stages[run.store.key(proposal.stages()[0])]
    candidate = done.stage.candidate
    broken = violations(run.budget, run.baseline, candidate)
    return Outcome(
        ratios=reached(run.budget, run.baseline, candidate),
        drop_met="drop" not in broken and complete,
        complete=complete,
    )


def _follow(run: _Run, recipe: Recipe) -> Stored:
    """The stages of a recipe in order; one that the gate rolls back is left out of what follows. -> the last stage done."""
    kept = last = run.stages[run.store.key(Recipe())]
    for stage in recipe.stages():
        whole = kept.stage.candidate.recipe + stage
        key = run.store.key(whole)
        if key not in run.stages:
            run.stages[key] = run.store.find(whole) or _execute(run, stage, whole, kept.stage.candidate)
        last = run.stages[key]
        kept = last if last.stage.kept else kept
    return last


def _execute(run: _Run, steps: Recipe, whole: Recipe, previous: Candidate) -> Stored:
    """One stage: apply its steps, export, check, measure, judge, and put it on disk."""
    began, label, before = time.monotonic(), str(whole), run.model_of(previous)
    model = _applied(run, steps, whole, before, _labelled(run.progress, label))
    with scratch_folder(run.store.folder(whole)) as scratch:
        run.progress(f"{label}: measure", 0.0)
        artifact, parity = export_checked(model, run.task, run.target, scratch / "model.onnx")
        candidate, _ = candidate_of(
            model,
            run.task,
            artifact,
            recipe=whole,
            baseline=run.baseline_pair(),
            confidence=run.budget.confidence,
            limit=run.budget.limit("latency"),
        )
        folds = folds_of(model)[len(folds_of(before)) :]
        stage = dataclasses.replace(_judged(run, steps, candidate, previous, began), folds=folds)
        rows = tuple(dataclasses.replace(row, candidate=candidate.name) for row in parity)
        run.progress(f"{label}: measure", 1.0)
        return run.store.save(whole, Stored(stage, rows), model, scratch / "model.onnx")


def _applied(run: _Run, steps: Recipe, whole: Recipe, model: nn.Module, progress: Progress) -> nn.Module:
    """The steps of a stage, from where a run that was killed had got. What a refused step leaves is of no use to anybody."""
    place = Resume(run.store.unfinished(whole), teacher=run.store.teacher)
    try:
        return apply(run.task, steps, model=model, target=run.target, seed=run.seed, progress=progress, resume=place)
    except OutputError:  # a full disk, say
        raise
    except ParedownError:
        shutil.rmtree(place.folder, ignore_errors=True)
        raise


def _judged(run: _Run, steps: Recipe, candidate: Candidate, previous: Candidate, began: float) -> Stage:
    ratio = candidate.latency_ratio
    if previous.recipe.steps:
        paths = Path(previous.artifact.path), Path(candidate.artifact.path)
        ratio = compare_latency(run.task, *paths, run.target, confidence=run.budget.confidence).ratio
    size_ratio = candidate.artifact.size_bytes / previous.artifact.size_bytes
    packed = None
    if any(isinstance(step, Sparsify) for step in steps.steps):
        packed = compressed_bytes(candidate.artifact.path) / compressed_bytes(previous.artifact.path)
    verdict: Verdict = judge(run.budget, run.baseline, previous, candidate, ratio, size_ratio)
    return Stage(
        str(steps), candidate.recipe, candidate, verdict.kept, verdict.reason, ratio, size_ratio, time.monotonic() - began, packed
    )


def _labelled(progress: Progress, stage: str) -> Progress:
    return lambda label, fraction: progress(f"{stage}: {label}", fraction)


def _kept(run: _Run) -> list[Candidate]:
    return [stored.stage.candidate for stored in run.stages.values() if stored.stage.kept]


def _choice(run: _Run, *, planned: bool) -> Candidate:
    """Of a plan's proposals the best; of a recipe that the user fixed, as much as the gate kept, if that is within the budget."""
    candidates = _kept(run)
    if not planned and not violations(run.budget, run.baseline, candidates[-1]):
        return candidates[-1]
    return choose(run.budget, run.baseline, candidates)


def _finish(
    run: _Run, chosen: Candidate, barriers: tuple[Barrier, ...], curves: tuple[SensitivityCurve, ...], started: float
) -> Report:
    """Measure the choice afresh (and on the test split), and write the result."""
    run.progress("report", 0.0)
    candidates = _kept(run)
    confidence = run.budget.confidence
    best, timed = with_final(chosen, run.task, run.baseline, confidence)
    baseline, _ = with_final(run.baseline, run.task, run.baseline, confidence)
    baseline = dataclasses.replace(baseline, latency=timed)
    report = Report(
        task=run.task.name,
        metric=str(run.task.scorer),
        budget=run.budget,
        target=run.target,
        met=not violations(run.budget, baseline, best),
        binding=binding(run.budget, baseline, best),
        baseline=baseline,
        best=best,
        front=pareto([*candidates, best]),
        stages=tuple(stored.stage for stored in run.stages.values() if stored.stage.recipe.steps),
        widths=widths(run.task.model, str(chosen.checkpoint)),
        parity=_parity_rows(run),
        barriers=barriers,
        environment=environment(run.target),
        seed=run.seed,
        seconds=time.monotonic() - started,
        sensitivity=curves,
        **_of_layers(run, chosen),
    )
    published = run.store.publish(report, render_html)
    run.progress("report", 1.0)
    return _with_modules(published, run.task.model).with_renderer(render_html)


def _of_layers(run: _Run, chosen: Candidate) -> dict[str, Any]:
    """Of a quantized result: bits, and what they cost, layer by layer."""
    if not any(isinstance(step, Quantize) for step in chosen.recipe.steps):
        return {}
    model = run.model_of(chosen)
    assert isinstance(model, QuantizedModel)  # its recipe says so
    bits: dict[str, Any] = {"bits": layer_bits(model)}
    if model.config.kind not in INTEGER_KINDS:
        return bits
    bits["operators"] = executed_operators(chosen.artifact.path, run.target)
    return bits | {"quantization": diagnosed(run.task, model, run.target, samples=_LAYER_SAMPLES, progress=run.progress)}


def _parity_rows(run: _Run) -> tuple[Parity, ...]:
    return tuple(row for stored in run.stages.values() for row in stored.parity)


def _with_modules(report: Report, model: nn.Module) -> Report:
    """The report whose candidates can give their torch models, from their checkpoints."""

    def ready(candidate: Candidate) -> Candidate:
        load: Callable[[], nn.Module] = functools.partial(load_checkpoint, str(candidate.checkpoint), model)
        return dataclasses.replace(candidate, load=load)

    return dataclasses.replace(
        report,
        baseline=ready(report.baseline),
        best=ready(report.best),
        front=tuple(ready(candidate) for candidate in report.front),
        stages=tuple(dataclasses.replace(stage, candidate=ready(stage.candidate)) for stage in report.stages),
    )
