"""What a cut would cost is what its trained file costs, is measured once, and is kept beside the stages."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import paredown
from paredown import Budget, Distill, Prune, Quantize, Recipe, Target, Task, Training
from paredown.core.artifact import Candidate
from paredown.core.budget import Axis
from paredown.core.effort import Effort
from paredown.core.steps import Widths
from paredown.pipeline import compress as main_job
from paredown.pipeline.screen import Screen
from paredown.pipeline.store import Store, identity
from tests.conftest import SmallResNet, make_pattern_task

TARGET = Target("onnxruntime", batch=16, threads=1)
SIZE: tuple[Axis, ...] = ("size",)
BUDGET = Budget(max_drop=0.05, size="0.9x")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, trained_small_resnet: SmallResNet) -> tuple[Task, Candidate, Path]:
    """A run that has measured its baseline: task, baseline and folder, which a test copies before it writes there."""
    task, folder = make_pattern_task(trained_small_resnet), tmp_path_factory.mktemp("measured") / "run"
    store = Store.open(folder, identity(task, BUDGET, TARGET, 0), "refuse")
    run = main_job._Run(task, BUDGET, TARGET, 0, lambda label, fraction: None, store)
    run.measure_baseline()
    return task, run.baseline, folder


@pytest.fixture
def screen(tmp_path: Path, measured: tuple[Task, Candidate, Path]) -> Callable[..., Screen]:
    """A screen over a run whose baseline is measured."""
    task, baseline, folder = measured
    shutil.copytree(folder, tmp_path / "run")
    store = Store.open(tmp_path / "run", identity(task, BUDGET, TARGET, 0), "resume")

    def make() -> Screen:
        return Screen(task, baseline, TARGET, store, 0, lambda label, fraction: None)

    return make


def prune(ratio: float, **widths: float) -> Recipe:
    return Recipe((Prune(ratio=ratio, widths=Widths(**widths)), Quantize(samples=64)))  # type: ignore[arg-type]  # round_to is whole


def test_bytes_of_the_untrained_file_are_those_of_the_trained_one(
    screen: Callable[..., Screen], pattern_task: Task, tmp_path: Path
) -> None:
    cut, quantized = prune(0.4).steps
    trained = Recipe((cut, Distill(training=Training(effort=Effort(2, "steps"))), quantized))
    model = paredown.apply(pattern_task, trained, target=TARGET)
    final = paredown.export(model, pattern_task, target=TARGET, path=tmp_path / "trained.onnx")
    made = screen()
    costs = made(prune(0.4), SIZE)
    assert costs is not None and set(costs) == {"size"}
    assert costs["size"] == pytest.approx(final.size_bytes / made.baseline.artifact.size_bytes, rel=0.01)


def test_a_latency_is_measured_only_where_it_is_asked(screen: Callable[..., Screen]) -> None:
    made = screen()
    size = made(prune(0.4), SIZE)
    both = made(prune(0.4), ("size", "latency"))
    assert size is not None and both is not None
    assert set(size) == {"size"} and both["latency"] > 0
    assert both["size"] == size["size"]


def test_what_was_found_is_taken_from_disk_by_the_next_run(
    screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = screen()(prune(0.4), SIZE)
    monkeypatch.setattr(Screen, "_measured", lambda *_: pytest.fail("measured twice"))
    assert screen()(prune(0.4), SIZE) == first


def test_a_damaged_record_is_measured_anew(screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch) -> None:
    made, measured = screen(), list[Recipe]()
    monkeypatch.setattr(Screen, "_measured", lambda _, recipe, __: measured.append(recipe) or {"size": 0.5})
    file = made.store.folder(prune(0.4)).with_suffix(".costs.json")
    for number, damage in enumerate((b"", b"{", b'{"sise": 1}', b'{"size": "small"}', b"\xff\xfe"), 1):
        file.write_bytes(damage)
        assert made(prune(0.4), SIZE) == {"size": 0.5} == made(prune(0.4), SIZE)
        assert len(measured) == number


def test_a_cut_that_can_not_be_made_costs_nothing_and_is_told_so(screen: Callable[..., Screen]) -> None:
    made = screen()
    assert made(prune(0.98, floor=0.9), SIZE) is None
    assert made(prune(0.98, floor=0.9), SIZE) is None  # from disk


def test_progress_says_which_cut_is_looked_at(screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(Screen, "_measured", lambda *_: {"size": 0.5})
    dataclasses.replace(screen(), progress=lambda label, fraction: seen.append((label, fraction)))(prune(0.4), SIZE)
    assert seen == [("plan: what prune ratio 0.4 would cost", 0.0), ("plan: what prune ratio 0.4 would cost", 1.0)]


def test_no_scratch_file_is_left(screen: Callable[..., Screen]) -> None:
    made = screen()
    before = {path.name for path in (made.store.out / "stages").iterdir()}
    made(prune(0.4), SIZE)
    after = {path.name for path in (made.store.out / "stages").iterdir()}
    assert {name.partition(".")[2] for name in after - before} == {"costs.json"}
