"""The main job on a small net: files, gate, front, resume, and that nothing is left half-written."""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import paredown
from paredown import Budget, Distill, Prune, Quantize, Recipe, Report, Sparsify, Target, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import (
    BatchError,
    CertificationError,
    ExportError,
    NothingToPruneError,
    OutputError,
    TrainingDivergedError,
)
from paredown.pipeline import apply as doing
from paredown.pipeline import compress as main_job
from paredown.pipeline.store import Store, identity, read_report
from tests.conftest import pattern_batches

TARGET = Target("onnxruntime", batch=16, threads=1)
SIZE_ONLY = Budget(max_drop=0.05, size="0.9x")  # no latency: a verdict must not hang on this machine's noise
RECOVERY = Distill(training=Training(effort=Effort(2, "epochs"), learning_rate=0.02))
FULL = Recipe((Prune(ratio=0.4), RECOVERY, Quantize(samples=128)))
RESULT = {"model.onnx", "checkpoint", "recipe.yaml", "report.json", "report.html", "stages"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, trained_small_resnet: torch.nn.Module) -> tuple[Report, Path, Task]:
    """One whole run with a fixed recipe, for the tests that only look."""
    out = tmp_path_factory.mktemp("runs") / "full"
    task = Task(
        model=trained_small_resnet, example_inputs=(torch.randn(4, 1, 8, 8),), train=pattern_batches(640, seed=1),
        validation=pattern_batches(640, seed=2), test=pattern_batches(320, seed=3), name="patterns",
    )  # fmt: skip
    return paredown.compress(task, SIZE_ONLY, target=TARGET, out=out, recipe=FULL, sensitivity=True), out, task


def test_run_writes_the_result_and_nothing_else(finished: tuple[Report, Path, Task]) -> None:
    report, out, _ = finished
    assert names(out) == RESULT
    assert report.met, report.binding
    assert Path(report.best.artifact.path).stat().st_size == report.best.artifact.size_bytes


def test_both_stages_survive_the_gate_and_the_result_is_really_smaller(finished: tuple[Report, Path, Task]) -> None:
    report, _, _ = finished
    assert [(stage.name, stage.kept) for stage in report.stages] == [("prune + distill", True), ("quantize", True)]
    assert report.best.size_ratio < 0.5
    assert report.best.macs < 0.62 * report.baseline.macs


def test_curves_of_every_group_are_in_the_report_and_on_its_page(finished: tuple[Report, Path, Task]) -> None:
    report, out, task = finished
    channels = [curve.group for curve in report.sensitivity if curve.masked == "channels"]
    assert channels == [row.name for row in paredown.analyze(task, TARGET).groups]
    assert read_report(out).sensitivity == report.sensitivity
    for words in ("Sensitivity to masked channels, group by group", "weights, layer by layer", "first 256 validation"):
        assert words in (out / "report.html").read_text()


def test_layers_of_a_quantized_result_are_in_the_report_the_noisiest_first(finished: tuple[Report, Path, Task]) -> None:
    report, out, _ = finished
    decibels = [row.simulated_db for row in report.quantization]
    assert {row.module for row in report.quantization} == {row.module for row in report.bits}
    assert decibels == sorted(decibels) and all(row.saturated == 0 for row in report.quantization)
    assert all(row.cost is not None and row.cost.size_bytes < row.cost.size_bytes_float for row in report.bits)
    assert report.operators is not None and report.operators.int8 and not report.operators.floating.keys() & {"Conv", "Gemm"}
    assert read_report(out).quantization == report.quantization
    assert "What quantization costs each layer" in (out / "report.html").read_text()


def test_a_planned_run_of_a_frozen_model_reports_what_int8_gave(pattern_task: Task, tmp_path: Path) -> None:
    frozen = copy.deepcopy(pattern_task.model).requires_grad_(False)
    task = dataclasses.replace(pattern_task, model=frozen)
    report = paredown.compress(task, Budget(max_drop=0.05, size="0.1x"), target=TARGET, out=tmp_path / "run")
    assert not report.met and str(report.best.recipe) == "quantize" and "size" in report.binding[0]
    said = [barrier for barrier in report.barriers if barrier.operator == "training"]
    assert len(said) == 1 and "requires" in said[0].reason and "no cut can be chosen and recovered" in said[0].reason
    assert "no cut can be chosen and recovered" in (tmp_path / "run" / "report.html").read_text()


def test_written_report_reads_back_and_its_paths_are_relative(finished: tuple[Report, Path, Task]) -> None:
    report, out, _ = finished
    read = read_report(out)
    assert read.best.recipe == FULL == Recipe.parse((out / "recipe.yaml").read_text())
    assert read.best.artifact.path == "model.onnx" and read.best.checkpoint == "checkpoint"
    assert (
        dataclasses.replace(read, best=report.best, baseline=report.baseline, front=report.front, stages=report.stages) == report
    )
    assert str(out) not in (out / "report.json").read_text() + (out / "report.html").read_text()


def test_test_split_and_memory_are_measured_for_baseline_and_best(finished: tuple[Report, Path, Task]) -> None:
    report, _, _ = finished
    for candidate in (report.baseline, report.best):
        assert candidate.test_quality is not None and candidate.test_quality.n == 320
        assert candidate.memory is not None and candidate.memory.value > 0
    assert report.best.test_drop is not None


def test_best_module_and_file_agree(finished: tuple[Report, Path, Task]) -> None:
    report, _, task = finished
    with torch.no_grad():
        expected = report.best.module()(task.inputs[0])
    found = paredown.load(report.best.artifact.path)(task.inputs[0].numpy())
    assert torch.linalg.vector_norm(torch.as_tensor(found) - expected) <= 0.02 * torch.linalg.vector_norm(expected)


def test_file_runs_with_numpy_and_onnxruntime_alone(finished: tuple[Report, Path, Task]) -> None:
    _, out, _ = finished
    code = (
        "import sys, numpy, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1]); "
        "x = numpy.zeros((5, 1, 8, 8), numpy.float32); y, = s.run(None, {s.get_inputs()[0].name: x}); "
        "assert 'torch' not in sys.modules; print(y.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, out / "model.onnx"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(5, 10)"


def test_no_path_of_the_machine_is_in_the_files(finished: tuple[Report, Path, Task]) -> None:
    _, out, _ = finished
    for file in (out / "model.onnx", out / "checkpoint" / "manifest.json"):
        content = file.read_bytes()
        assert str(Path.cwd()).encode() not in content and b"site-packages" not in content


def test_stage_that_costs_too_much_is_rolled_back_with_its_reason(pattern_task: Task, tmp_path: Path) -> None:
    recipe = Recipe((Prune(ratio=0.8, importance="random", widths=paredown.Widths(floor=0.05)), Quantize(samples=128)))
    report = paredown.compress(pattern_task, SIZE_ONLY, target=TARGET, out=tmp_path / "run", recipe=recipe)
    pruned, quantized = report.stages
    assert not pruned.kept and "rolled back: the drop is" in pruned.reason
    assert quantized.kept and quantized.recipe == Recipe((Quantize(samples=128),))
    assert report.best.recipe == Recipe((Quantize(samples=128),))


def older_run(folder: Path) -> set[Path]:
    """The files of one that a new run is to replace."""
    old = {folder / "stages" / "0123456789abcdef" / "stage.json", folder / "report.json"}
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return old


def test_budget_out_of_reach_gives_the_nearest_point_and_what_binds_and_nothing_of_an_older_run(
    pattern_task: Task, tmp_path: Path
) -> None:
    older_run(tmp_path / "run")
    report = paredown.compress(
        pattern_task,
        Budget(max_drop=0.05, size="0.01x"),
        target=TARGET,
        out=tmp_path / "run",
        recipe=Recipe((Quantize(samples=128),)),
        existing="replace",
    )
    assert not report.met
    assert any(line.startswith("size") for line in report.binding)
    assert report.best.recipe.steps, "int8 is nearer to the budget than the baseline"
    assert names(tmp_path / "run") == RESULT and "0123456789abcdef" not in names(tmp_path / "run" / "stages")


def test_killed_run_is_taken_up_where_it_stopped(pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, done = tmp_path / "run", []
    real = main_job.apply

    def stops_at_quantize(task: Task, recipe: Recipe, **options: Any) -> torch.nn.Module:
        if isinstance(recipe.steps[0], Quantize):
            raise KeyboardInterrupt
        return real(task, recipe, **options)

    def counts(task: Task, recipe: Recipe, **options: Any) -> torch.nn.Module:
        done.append(str(recipe))
        result = real(task, recipe, **options)
        folder = options["resume"].folder
        assert names(folder) == {"of", "0-quantize"} and folder.parent == out / "stages"
        return result

    monkeypatch.setattr(main_job, "apply", stops_at_quantize)
    with pytest.raises(KeyboardInterrupt):
        paredown.compress(pattern_task, SIZE_ONLY, target=TARGET, out=out, recipe=FULL)
    whole = {name for name in names(out / "stages") if "." not in name}
    assert names(out) == {"stages"} and len(whole) == 2, "the baseline and the pruned stage are whole"
    monkeypatch.setattr(main_job, "apply", counts)
    report = paredown.compress(pattern_task, SIZE_ONLY, target=TARGET, out=out, recipe=FULL, existing="resume")
    assert done == ["quantize"]
    assert report.met and names(out) == RESULT and not list(out.glob("stages/*.unfinished"))


class Interrupting:
    """The task's loss; it stops the run in a step of the distillation."""

    def __init__(self, at: int = 10**9) -> None:
        self.at, self.steps = at, 0

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.steps += output.requires_grad
        if self.steps > self.at:
            raise KeyboardInterrupt
        return torch.nn.functional.cross_entropy(output, target)


@pytest.mark.slow
def test_run_killed_in_a_distillation_goes_on_from_there_to_the_same_weights(
    pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, cut, threads = Recipe((Prune(ratio=0.4), RECOVERY)), [], torch.get_num_threads()
    monkeypatch.setattr(doing.Resume, "of", lambda place: dataclasses.replace(place, steps=5))

    def run(out: str, loss: Interrupting, existing: Any = "refuse") -> Report:
        task = dataclasses.replace(pattern_task, loss=loss)
        return paredown.compress(task, SIZE_ONLY, target=TARGET, out=tmp_path / out, recipe=recipe, existing=existing)

    def weights(report: Report) -> bytes:
        return Path(str(report.best.checkpoint), "model.safetensors").read_bytes()

    torch.set_num_threads(1)
    try:
        whole = run("whole", Interrupting())
        with pytest.raises(KeyboardInterrupt):
            run("killed", Interrupting(at=12))
        monkeypatch.setattr(doing, "prune_resumable", lambda *_, **__: cut.append(1))
        rest = Interrupting()
        resumed = run("killed", rest, "resume")
    finally:
        torch.set_num_threads(threads)
    assert weights(resumed) == weights(whole)
    assert not cut and rest.steps == 10  # of 20; 10 were kept
    assert not list((tmp_path / "killed" / "stages").glob("*.unfinished"))


@pytest.mark.slow
def test_stage_whose_file_was_changed_is_done_again(pattern_task: Task, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", Recipe((Quantize(samples=128),))
    first = paredown.compress(pattern_task, SIZE_ONLY, target=TARGET, out=out, recipe=recipe)
    broken = Path(first.stages[0].candidate.artifact.path)
    broken.write_bytes(broken.read_bytes()[:-10])
    again = paredown.compress(pattern_task, SIZE_ONLY, target=TARGET, out=out, recipe=recipe, existing="resume")
    assert again.met and again.best.artifact.digest == first.best.artifact.digest


@pytest.mark.parametrize("name", ["model.onnx", "stage.json", "checkpoint/model.safetensors", "checkpoint/manifest.json"])
def test_damaged_stage_is_not_taken_up(finished: tuple[Report, Path, Task], tmp_path: Path, name: str) -> None:
    _, out, task = finished
    copied = Store(Path(shutil.copytree(out, tmp_path / "run")), identity(task, SIZE_ONLY, TARGET, 0))
    assert copied.find(FULL) is not None
    broken = copied.folder(FULL) / name
    broken.write_bytes(broken.read_bytes()[:-10])
    assert copied.find(FULL) is None


def test_failing_step_leaves_nothing_half_written(pattern_task: Task, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(NothingToPruneError):
        paredown.compress(
            pattern_task,
            SIZE_ONLY,
            target=TARGET,
            out=out,
            recipe=Recipe((Prune(ratio=0.99, widths=paredown.Widths(floor=0.9)),)),
        )
    assert names(out) == {"stages"} and len(names(out / "stages")) == 1, "only the finished baseline"


def test_validation_set_too_small_to_certify_is_refused_before_anything_is_written(pattern_task: Task, tmp_path: Path) -> None:
    small = dataclasses.replace(pattern_task, validation=list(pattern_task.validation)[:3])
    with pytest.raises(CertificationError, match="takes 300 validation samples, got 192"):
        paredown.compress(small, Budget(max_drop=0.01, size="0.5x"), target=TARGET, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_drop_in_per_cent_of_nothing_names_the_baseline(pattern_task: Task, tmp_path: Path) -> None:
    wrong = dataclasses.replace(pattern_task, validation=[(x, y * 0 - 1) for x, y in pattern_task.validation])
    with pytest.raises(CertificationError, match="a baseline above 0, got top-1 of 0; check the metric and the labels"):
        paredown.compress(wrong, Budget(max_drop="5%", size="0.5x"), target=TARGET, out=tmp_path / "run")


def test_a_run_to_be_replaced_stays_until_the_new_one_is_accepted(pattern_task: Task, tmp_path: Path) -> None:
    old = older_run(tmp_path)
    small = dataclasses.replace(pattern_task, validation=list(pattern_task.validation)[:3])
    with pytest.raises(CertificationError):
        paredown.compress(small, Budget(max_drop=0.01, size="0.5x"), target=TARGET, out=tmp_path, existing="replace")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == old


@pytest.mark.parametrize("recipe", [None, Recipe((Prune(ratio=0.4), RECOVERY))], ids=["planned", "fixed"])
def test_a_training_batch_of_one_is_refused_before_anything_is_measured(recipe: Recipe | None, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)).eval()
    x, y = torch.randn(33, 3), torch.zeros(33).long()
    task = Task(model, (x[:2],), train=[(x[:32], y[:32]), (x[32:], y[32:])], validation=[(x, y)])
    with pytest.raises(BatchError, match="drop_last=True"):
        paredown.compress(task, SIZE_ONLY, target=TARGET, out=tmp_path / "run", recipe=recipe)
    assert not (tmp_path / "run").exists()


def test_a_training_batch_of_one_is_left_to_the_users_train_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)).eval()
    x, y = torch.randn(33, 3), torch.zeros(33).long()
    task = Task(
        model, (x[:2],), train=[(x[:32], y[:32]), (x[32:], y[32:])], validation=[(x, y)], train_step=lambda m, b: m(b[0]).sum()
    )

    class BegunError(Exception):
        pass

    def begins(_: Any, fresh: bool) -> None:
        raise BegunError

    monkeypatch.setattr(main_job._Run, "measure_baseline", begins)
    with pytest.raises(BegunError):
        paredown.compress(task, SIZE_ONLY, target=TARGET, out=tmp_path / "run")


def test_the_remedy_of_a_training_that_diverged_can_be_given_to_a_plan(
    pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Recipe] = []

    def diverges(_run: Any, proposal: Recipe) -> Any:
        asked.append(proposal)
        raise TrainingDivergedError("the loss must stay finite", got="nan", remedy="lower learning_rate (now 0.08)")

    monkeypatch.setattr(main_job, "_follow", diverges)
    given = paredown.Training(effort=Effort(1, "epochs"), learning_rate=0.08)
    with pytest.raises(TrainingDivergedError, match=r"Training\(learning_rate=0.02\).* --learning-rate 0.02"):
        paredown.compress(pattern_task, SIZE_ONLY, target=TARGET, out=tmp_path / "run", effort=given)
    assert asked == [Recipe((Quantize(),))]


def test_few_samples_of_a_metric_that_is_not_right_or_wrong_are_refused(pattern_task: Task, tmp_path: Path) -> None:
    few = dataclasses.replace(
        pattern_task,
        validation=[(x[:20], y[:20]) for x, y in list(pattern_task.validation)[:1]],
        metric=lambda output, target: -torch.nn.functional.cross_entropy(output, target, reduction="none"),
    )
    with pytest.raises(CertificationError, match="at least 30 validation samples, got 20"):
        paredown.compress(few, Budget(max_drop=0.01, size="0.5x"), target=TARGET, out=tmp_path / "run")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_16_bits_are_refused_with_the_remedy(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.randn(4, 8, dtype=dtype)
    model = torch.nn.Linear(8, 2, dtype=dtype)
    task = Task(model, (x,), train=[(x, torch.zeros(4).long())], validation=[(x, torch.zeros(4).long())])
    with pytest.raises(ExportError, match=r"float16; call model.float\(\)"):
        paredown.export(model, task, path=tmp_path / "model.onnx")


@pytest.mark.parametrize(("existing", "remedy"), [("refuse", "--resume"), ("replace", "another folder"), ("overwrite", "resume")])
def test_folder_that_holds_something_else_is_refused_and_kept(
    pattern_task: Task, tmp_path: Path, existing: Any, remedy: str
) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(OutputError, match=remedy):
        paredown.compress(pattern_task, SIZE_ONLY, target=TARGET, out=tmp_path, recipe=FULL, existing=existing)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"


@pytest.mark.slow
def test_progress_names_each_stage_and_ends_at_one(pattern_task: Task, tmp_path: Path) -> None:
    seen: dict[str, float] = {}
    paredown.compress(
        pattern_task, SIZE_ONLY, target=TARGET, out=tmp_path / "run", recipe=Recipe((Quantize(samples=128),)),
        progress=seen.__setitem__,
    )  # fmt: skip
    assert seen["baseline"] == seen["report"] == seen["quantize: measure"] == 1.0


def test_report_json_holds_no_code(finished: tuple[Report, Path, Task]) -> None:
    _, out, _ = finished
    data = json.loads((out / "report.json").read_text())
    assert "load" not in data["best"] and "render" not in data


@pytest.mark.slow
def test_a_sparse_stage_reports_its_compressed_bytes_and_no_gain_in_size(pattern_task: Task, tmp_path: Path) -> None:
    recipe = Recipe((Sparsify(ratio=0.7, scope="uniform"), Quantize(samples=64)))
    report = paredown.compress(pattern_task, SIZE_ONLY, target=TARGET, out=tmp_path / "run", recipe=recipe)
    sparse, quantized = report.stages
    assert not sparse.kept and sparse.size_ratio == pytest.approx(1.0, abs=0.01)
    assert sparse.compressed_ratio is not None and sparse.compressed_ratio < 0.7
    assert quantized.compressed_ratio is None
    page = (tmp_path / "run" / "report.html").read_text().replace("\u00a0", " ")
    assert "zeros in place: same speed" in page and "packed by gzip" in page
    assert read_report(tmp_path / "run").stages[0].compressed_ratio == sparse.compressed_ratio
