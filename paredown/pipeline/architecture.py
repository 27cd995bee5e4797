"""A search over the subnets of a user's own model that ends in plain trained modules.

    elastic space -> supernet, one set of weights for all -> search with inherited weights, latency measured in the target's
    runtime -> the best are recovered by distillation from the original -> each is exported and held against the original

Choices rest on the validation split; the test split is read once, for what is returned. With a folder, each finished part is on
disk before the next begins, and a run that was stopped goes on from there, in the middle of a training too.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pydantic
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from paredown.core.errors import ArtifactError, OutputError, RecipeError, SearchError
from paredown.core.fields import seed_number
from paredown.core.knowledge import OfOutput
from paredown.core.measurement import Measurement
from paredown.core.page import write_page
from paredown.core.progress import Progress, silent
from paredown.core.search_report import Recovered
from paredown.core.steps import Distill, Quantize
from paredown.core.subnets import Subnets
from paredown.core.target import Target
from paredown.core.training import Resume
from paredown.distillation.outputs import hard_loss, soft_loss
from paredown.distillation.recover import distill_model
from paredown.distillation.suited import recovering, settled
from paredown.distillation.teacher import floating
from paredown.measure.cost import count_macs, count_parameters
from paredown.measure.quality import Scores, drop, quality, score
from paredown.nas.elastic import Elastic, elastic
from paredown.nas.evaluators.blocks import BlockLatency, timings
from paredown.nas.evaluators.executor import Executor, Serial, working
from paredown.nas.evaluators.store import Store
from paredown.nas.evaluators.supernet import Hard, Soft, SupernetEvaluator, train_supernet
from paredown.nas.evaluators.training import unfinished
from paredown.nas.outcome import Found, SearchResult
from paredown.nas.page import search_report
from paredown.nas.problem import Limit, Objective, Problem, SearchEffort
from paredown.nas.search import conclude, name_of, require_strategy, run, strategy_of
from paredown.nas.strategies.strategy import StrategyFactory
from paredown.nas.strategies.surrogate import Surrogate
from paredown.pipeline.after_quantization import AfterQuantization
from paredown.pipeline.checkpoint import load_checkpoint, save_checkpoint
from paredown.pipeline.evaluate import compare_latency, export_checked, score_file
from paredown.pipeline.steps import quantize
from paredown.pipeline.store import digest_of
from paredown.pipeline.subnet_clock import LATENCY, Clock, clock_of
from paredown.pruning.scores import scores
from paredown.render.search import render_search
from paredown.task.batches import Batch, call, each, evaluating
from paredown.task.task import Task, require_task
from paredown.train.seeds import seeded

Executors: TypeAlias = Callable[[SupernetEvaluator], Executor]

_TRIED = 4  # times as many subnets as are kept are timed for real, until those are found


@dataclass(frozen=True, eq=False)
class Subnet:
    """One that was recovered. model: a plain module of the original's class, ready for prune, quantize, export.

    inherited: its metric on validation with the supernet's weights. quality, drop: on validation, after its recovery;
    test_quality, test_drop: on the test split. latency_ratio: of its file against the original's, paired. With a target all
    these are the file's, without one the module's.
    """

    found: Found
    model: nn.Module
    inherited: float
    quality: Measurement
    drop: Measurement
    test_quality: Measurement | None
    test_drop: Measurement | None
    latency_ratio: Measurement | None
    macs: int
    parameters: int


@dataclass(frozen=True, eq=False)
class SubnetResult:
    """candidates: best first, by the metric on validation; last those whose file, timed again after its recovery, doesn't keep
    the limit of latency beyond doubt. search: all that was looked at. elastic.fixed: what couldn't vary.

    blocks: the table that told latencies during the search, with its error; None where each subnet was timed, or none.
    """

    elastic: Elastic
    supernet: nn.Module
    search: SearchResult
    candidates: tuple[Subnet, ...]
    blocks: BlockLatency | None = None

    @property
    def best(self) -> Subnet:
        return self.candidates[0]

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, between the metric with inherited weights and after recovery; None for less than 3 candidates."""
        if len(self.candidates) < 3:
            return None
        return float(spearmanr([c.inherited for c in self.candidates], [c.quality.value for c in self.candidates]).statistic)

    def save_html(self, path: str | Path) -> Path:
        """The search, its front, and what was recovered, as one self-contained page. Raises OutputError."""
        recovered = [_drawn(candidate) for candidate in self.candidates]
        return write_page(path, render_search(search_report(self.search, recovered)))

    def to_json(self) -> str:
        """All but the modules."""
        rows = [{f.name: getattr(c, f.name) for f in dataclasses.fields(c) if f.name != "model"} for c in self.candidates]
        data = {"candidates": rows, "rank_correlation": self.rank_correlation, "fixed": self.elastic.fixed}
        data["latency_table_error"] = None if self.blocks is None else self.blocks.error
        text: bytes = pydantic.TypeAdapter(dict[str, Any]).dump_json(
            {**data, "search": json.loads(self.search.to_json())}, indent=1
        )
        return text.decode()


def _drawn(candidate: Subnet) -> Recovered:
    """What a page shows of a candidate."""
    shown = {f.name: getattr(candidate, f.name) for f in dataclasses.fields(Recovered) if f.name != "values"}
    return Recovered(candidate.found.values, **shown)


@dataclass(frozen=True, eq=False)
class _Run:
    """What a search is made with."""

    task: Task
    config: Subnets
    target: Target | None
    folder: Path | None
    seed: int
    progress: Progress
    executor: Executors
    recover: Distill


def search_subnets(
    task: Task,
    config: Subnets = Subnets(),  # noqa: B008 (frozen)
    *,
    target: Target | str | None = None,
    strategy: StrategyFactory = Surrogate,
    executor: Executors = Serial,
    out: str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> SubnetResult:
    """Smaller models of the task's own class, found with shared weights, then recovered. The task's model is not touched.

    target: where latency is measured; None: it isn't. strategy: as for `paredown.search`. executor: where subnets are evaluated,
    made of their evaluator: `functools.partial(paredown.nas.Processes, workers=2)`, where task and metric pickle.
    out: a folder, of this search alone, from which it goes on.
    Raises SearchError where the limit is a latency and there is no target, or nothing keeps the limit; ArtifactError where the
    folder is of another search; SearchSpaceError where nothing of the model may vary.
    """
    require_task(task)
    if not isinstance(config, Subnets):
        raise RecipeError("config must be a Subnets", got=type(config).__name__, remedy="write Subnets(macs='0.5x')")
    require_strategy(strategy)
    seed_number(seed)
    task.require_trainable()
    if config.latency is not None and target is None:
        raise SearchError("a limit of latency needs a target", got=config.latency, remedy='pass target="onnxruntime"')
    where = None if target is None else Target.of(target)
    folder = None if out is None else _opened(Path(out), task, config, where, seed)
    recover = recovering(task) if config.recover is None else config.recover
    made = _Run(task, config, where, folder, seed, progress, executor, recover)
    space = elastic_space(task, config, seed=seed)
    with working(executor, SupernetEvaluator(space, task.model, task)) as trial:  # what it can't take is told before the training
        if trial.capacity > 1 and config.latency is not None and timings(space.space) >= config.evaluations:
            raise SearchError(
                "subnets that are timed each, for want of a table, are timed one at a time", got=f"{trial.capacity} workers",
                remedy="leave executor out, or allow more evaluations"
            )  # fmt: skip
    supernet = _kept(made, "supernet", functools.partial(_trained, made, space))
    evaluator, limits, clock = _evaluator(made, space, supernet)
    found = _search(made, evaluator, limits, strategy)
    chosen = _chosen(found, config.keep, None if clock is None else clock.time)
    with tempfile.TemporaryDirectory(prefix="paredown-") as scratch:
        original = _Measured.of(made, task.model, Path(scratch) / "original.onnx")
        candidates = [_candidate(made, evaluator, original, each, i) for i, each in enumerate(chosen)]
    blocks = None if clock is None else clock.blocks
    ranked = sorted(candidates, key=lambda c: (_is_too_slow(c, limits, clock), c.drop.value))
    result = SubnetResult(space, supernet, found, tuple(ranked), blocks)
    if folder is not None:
        (folder / "result.json").write_text(result.to_json(), encoding="utf-8")
        result.save_html(folder / "report.html")
    return result


def elastic_space(task: Task, config: Subnets = Subnets(), *, seed: int = 0) -> Elastic:  # noqa: B008 (frozen)
    """The subnets of the task's model, channels sorted by the config's importance. Raises SearchSpaceError, TraceError."""
    with seeded(seed):  # a loader that shuffles draws its order from the global generators
        return elastic(
            task,
            scores=lambda groups: scores(task.model, task, groups, config.space.importance, seed=seed),
            widths=config.space.widths,
            depth="depth" in config.space.varies,
            kernel="kernel" in config.space.varies,
            seed=seed,
        )


def _opened(folder: Path, task: Task, config: Subnets, target: Target | None, seed: int) -> Path:
    """The folder, marked as this search's. Raises ArtifactError where it is another's, OutputError where it can't be one."""
    asked = [dataclasses.asdict(config), None if target is None else dataclasses.asdict(target), seed]
    mark, digest = folder / "search.json", digest_of(task, asked)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("out must be a folder that can be made", got=str(error), remedy="name another") from None
    if mark.exists() and _identity(mark) == digest:
        return folder
    if any(folder.iterdir()):
        raise ArtifactError(
            "a folder holds one search (same task, config, target and seed)", got=folder.name, remedy="name another folder"
        )
    mark.write_text(json.dumps({"identity": digest}), encoding="utf-8")
    return folder


def _identity(mark: Path) -> object:
    """What a folder says that it is of; None where that can't be read."""
    try:
        held = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held.get("identity") if isinstance(held, dict) else None


def _kept(made: _Run, name: str, make: Callable[[Resume | None], nn.Module]) -> nn.Module:
    """A model from the folder's checkpoint, or trained, kept while it is, and put there."""
    if made.folder is None:
        return make(None)
    halfway = made.folder / f"{name}-halfway"
    if not (made.folder / name / "manifest.json").is_file():
        save_checkpoint(make(Resume(halfway)), made.folder / name)
    shutil.rmtree(halfway, ignore_errors=True)
    return load_checkpoint(made.folder / name, made.task.model).eval()


def _trained(made: _Run, space: Elastic, resume: Resume | None) -> nn.Module:
    task, losses = made.task, _losses(made.task, made.recover)
    return train_supernet(
        space, task.train, losses, made.config.supernet, frozen=task.protect, seed=made.seed, progress=made.progress,
        resume=resume,
    )  # fmt: skip


def _losses(task: Task, config: Distill) -> tuple[Hard, Soft]:
    """The task's own loss for the largest subnet, and what compares the others with the original (without targets: all)."""
    asked = settled(config, task, task.model).soft
    kind = asked if isinstance(asked, str | OfOutput) else "soft_labels"

    def soft(output: Any, wanted: Any, batch: Batch) -> Tensor:
        return soft_loss(kind, output, floating(wanted), batch[1], config.temperature)

    def taught(_model: nn.Module, batch: Batch, output: Any) -> Tensor:
        with torch.no_grad(), evaluating(task.model):
            wanted = call(task.model, batch[0])
        return soft(output, wanted, batch)

    with seeded(0):
        _, target = next(each(task.train, "train", task.device))
    return (taught if target is None and task.train_step is None else functools.partial(hard_loss, task)), soft


def _evaluator(made: _Run, space: Elastic, supernet: nn.Module) -> tuple[SupernetEvaluator, tuple[Limit, ...], Clock | None]:
    """What subnets are judged by, the limit in its units, and what times them where the limit is a latency."""
    task, config, limit = made.task, made.config, made.config.limit()
    finish = AfterQuantization(target=made.target) if config.precision == "int8" else unfinished
    evaluator = SupernetEvaluator(space, supernet, task, finish=finish)
    if made.target is None or config.latency is None:
        baseline = float(count_macs(task.model, task.inputs))
        return evaluator, () if limit is None else (Limit("macs", high=limit.absolute(baseline)),), None
    clock = clock_of(space, task, made.target, config, folder=made.folder, seed=made.seed, progress=made.progress)
    how: dict[str, Any] = {"known": {LATENCY: clock.blocks}} if clock.blocks is not None else {"costs": {LATENCY: clock.measure}}
    limits = () if limit is None else (Limit(LATENCY, high=limit.absolute(clock.baseline_ms)),)
    return dataclasses.replace(evaluator, **how), limits, clock


def _search(made: _Run, evaluator: SupernetEvaluator, limits: tuple[Limit, ...], strategy: StrategyFactory) -> SearchResult:
    """By the metric within the limit; without a limit by the metric and the MACs."""
    goal = Objective(str(made.task.scorer), maximize=made.task.scorer.higher_is_better)
    objectives = (goal,) if limits else (goal, Objective("macs"))
    effort = SearchEffort(made.config.evaluations)
    problem = Problem(evaluator.elastic.space, objectives, limits, effort, seed=made.seed)
    store = None if made.folder is None else Store.of(made.folder / "search.jsonl", problem.space, evaluator, made.seed)
    asking = strategy_of(strategy, problem)
    with working(made.executor, evaluator) as executor:
        history = run(problem, asking, executor, store, made.progress)
    return conclude(problem, name_of(asking), evaluator, history)


def _chosen(found: SearchResult, keep: int, time: Callable[[Found], float] | None) -> Sequence[Found]:
    """The best within the limit; without a limit some of the front, evenly apart. Raises SearchError where nothing keeps it.

    time: ms of a subnet, for those whose latency a table told: it must hold for real.
    """
    if not found.limits:
        places = dict.fromkeys(round(i * (len(found.front) - 1) / max(1, keep - 1)) for i in range(keep))
        return [found.front[i] for i in places]
    limit, kept, last = found.limits[0], list[Found](), found.best
    for candidate in found.candidates[: _TRIED * keep] if found.feasible else ():
        if limit.violation(candidate.validation) > 0 or len(kept) == keep:
            break
        last = candidate if time is None else _with(candidate, limit.metric, time(candidate))
        kept += [last] if limit.violation(last.validation) <= 0 else []
    if not kept:
        raise SearchError(
            f"a subnet must keep {limit.metric} at {limit.high:.4g} or less", got=f"{last.validation[limit.metric]:.4g}",
            remedy="lower widths.floor, let more vary, or allow more evaluations"
        )  # fmt: skip
    return kept


def _is_too_slow(candidate: Subnet, limits: tuple[Limit, ...], clock: Clock | None) -> bool:
    """By the upper end of its interval, as the gate of a run judges."""
    if clock is None or candidate.latency_ratio is None:
        return False
    return any(limit.violation({LATENCY: candidate.latency_ratio.upper * clock.baseline_ms}) > 0 for limit in limits)


def _with(found: Found, metric: str, value: float) -> Found:
    return dataclasses.replace(found, validation={**found.validation, metric: value})


@dataclass(frozen=True, eq=False)
class _Measured:
    """A model's scores on validation and test (None: no such split), and its file, where there is a target."""

    file: Path
    validation: Scores
    test: Scores | None

    @classmethod
    def of(cls, made: _Run, model: nn.Module, file: Path) -> "_Measured":
        task, target = made.task, made.target
        if target is not None:
            export_checked(model, task, target, file)

        def scored(split: str) -> Scores:
            if target is not None:
                return score_file(task, file, target, split)
            with evaluating(model):
                return score(functools.partial(call, model), task, split)

        return cls(file, scored("validation"), None if task.test is None else scored("test"))


def _candidate(made: _Run, evaluator: SupernetEvaluator, original: _Measured, found: Found, number: int) -> Subnet:
    """A subnet after its recovery, and all that is told of it."""
    task = made.task
    chosen = hashlib.sha256(json.dumps(dict(found.values), sort_keys=True).encode()).hexdigest()[:12]
    name = f"candidate-{chosen}"  # another search in this folder, by another strategy, has others
    with seeded(made.seed):
        subnet = evaluator.subnet(found.values)
    training = functools.partial(distill_model, subnet, task, made.recover, seed=made.seed, progress=made.progress)
    model = _kept(made, name, lambda resume: training(resume=resume))
    shipped = model if made.config.precision == "fp32" else quantize(task, Quantize(), model=model, target=made.target)
    mine = _Measured.of(made, shipped, original.file.with_name(f"candidate-{number}.onnx"))
    latency = None if made.target is None else compare_latency(task, original.file, mine.file, made.target).ratio
    tests = None if original.test is None or mine.test is None else (original.test, mine.test)
    return Subnet(
        found=found,
        model=model,
        inherited=found.validation[str(task.scorer)],
        quality=quality(mine.validation),
        drop=drop(original.validation, mine.validation),
        test_quality=None if tests is None else quality(tests[1]),
        test_drop=None if tests is None else drop(*tests),
        latency_ratio=latency,
        macs=count_macs(model, task.inputs),
        parameters=count_parameters(model),
    )
