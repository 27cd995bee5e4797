"""A schedule reaches the goal in parts, each held against the original; what a target is fast at is measured once."""

import pathlib

import pytest
import torch
from torch import nn

from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.steps import Prune, Schedule, Widths
from paredown.core.target import Target
from paredown.graph.manifest import manifest_of
from paredown.measure.cost import count_macs
from paredown.pipeline import schedule, timings
from paredown.pipeline.schedule import prune_by_schedule
from paredown.quantization.model import QuantizedModel
from paredown.task.task import Task

TARGET = Target(batch=2, threads=1)


class Clock:
    """Stands for `latency_of`: a model costs what its MACs do, in int8 half of that, and every call is counted."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, task: Task, target: Target) -> "Clock":
        self.task = task
        return self

    def of(self, model: nn.Module) -> float:
        self.calls += 1
        return count_macs(model, self.task.inputs) / (2e5 if isinstance(model, QuantizedModel) else 1e5)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Clock:
    found = Clock()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(schedule, "latency_of", lambda task, target, **_: found(task, target).of)
    monkeypatch.setattr(timings, "latency_of", lambda task, target, **_: found(task, target).of)
    return found


def test_an_iterative_schedule_ends_at_the_goal_and_composes_its_cuts(pattern_task: Task) -> None:
    config = Prune(ratio=0.5, schedule=Schedule(steps=2, between=Effort(2, "steps")), widths=Widths(round_to=2))
    labels: list[str] = []
    pruned = prune_by_schedule(pattern_task, config, pattern_task.model, None, progress=lambda label, _: labels.append(label))
    assert 0.4 < count_macs(pruned, pattern_task.inputs) / count_macs(pattern_task.model, pattern_task.inputs) <= 0.5
    assert labels.count("surgery") == 2 and "distill" in labels
    manifest = manifest_of(pruned)
    assert manifest is not None
    original = dict(pattern_task.model.named_parameters())
    for name, parameter in pruned.named_parameters():
        kept = manifest.kept.get(name, {})
        assert parameter.shape == torch.Size(len(kept.get(d, range(n))) for d, n in enumerate(original[name].shape))


def test_a_latency_goal_is_met_by_measured_latency_and_its_table_is_remembered(pattern_task: Task, clock: Clock) -> None:
    config = Prune(latency="0.6x", importance="magnitude", widths=Widths(round_to=2))
    pruned = prune_by_schedule(pattern_task, config, pattern_task.model, TARGET)
    assert count_macs(pruned, pattern_task.inputs) <= 0.6 * count_macs(pattern_task.model, pattern_task.inputs)
    first, clock.calls = clock.calls, 0
    prune_by_schedule(pattern_task, config, pattern_task.model, TARGET)
    assert 0 < clock.calls < first / 2


def test_a_latency_goal_for_int8_files_is_relative_to_the_float_file_and_measured_on_int8_ones(
    pattern_task: Task, clock: Clock
) -> None:
    config = Prune(latency="0.35x", precision="int8", importance="magnitude", widths=Widths(round_to=2))
    pruned = prune_by_schedule(pattern_task, config, pattern_task.model, TARGET)
    assert 0.5 < count_macs(pruned, pattern_task.inputs) / count_macs(pattern_task.model, pattern_task.inputs) <= 0.7


@pytest.mark.parametrize("text", ["", "{", "[]", '{"base_ms": -1, "entries": {}}', '{"base_ms": 1, "entries": {"a": {"x": 1}}}'])
def test_a_damaged_table_is_measured_anew(pattern_task: Task, clock: Clock, tmp_path: pathlib.Path, text: str) -> None:
    config = Prune(latency="0.6x", importance="magnitude", widths=Widths(round_to=2))
    prune_by_schedule(pattern_task, config, pattern_task.model, TARGET)
    (file,) = (tmp_path / "paredown").glob("*.json")
    whole = file.read_text()
    file.write_text(text)
    prune_by_schedule(pattern_task, config, pattern_task.model, TARGET)
    assert file.read_text() == whole


def test_widths_are_what_the_target_is_fast_at(
    pattern_task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured: list[tuple[int, bool]] = []

    def blocks_of_four(width: int, target: Target, quantized: bool) -> float:
        measured.append((width, quantized))
        return float(-(-width // (4 if quantized else 2)) * (4 if quantized else 2))

    monkeypatch.setattr(timings, "_layer_latency", blocks_of_four)
    pruned = prune_by_schedule(pattern_task, Prune(ratio=0.3, widths=Widths(round_to=0)), pattern_task.model, TARGET)
    assert {module.out_channels % 4 for module in pruned.modules() if isinstance(module, nn.Conv2d)} == {0}
    assert {quantized for _, quantized in measured} == {False, True}
    measured.clear()
    assert timings.preferred_width(TARGET) == 4 and not measured  # remembered


def test_only_a_multiple_left_open_is_filled_in(
    pattern_task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[Prune] = []

    def keep(model: nn.Module, task: Task, config: Prune, **_: object) -> nn.Module:
        asked.append(config)
        return model

    monkeypatch.setattr(schedule, "preferred_width", lambda target: 16)
    monkeypatch.setattr(schedule, "prune_model", keep)
    open_, given = Prune(ratio=0.5, widths=Widths(round_to=0, floor=0.3)), Prune(ratio=0.5, widths=Widths(round_to=4))
    for config in (open_, given):
        prune_by_schedule(pattern_task, config, pattern_task.model, TARGET)
    assert asked[0].widths == Widths(round_to=16, floor=0.3)
    assert asked[1] is given


@pytest.mark.parametrize("config", [Prune(latency="0.5x"), Prune(ratio=0.5, widths=Widths(round_to=0))])
def test_what_must_be_measured_needs_a_target(pattern_task: Task, config: Prune) -> None:
    with pytest.raises(RecipeError, match="need a target"):
        prune_by_schedule(pattern_task, config, pattern_task.model, None)
