"""Steps in an order that can't work, and goals without what they need."""

from pathlib import Path

import pytest
from torch import nn

import paredown
from paredown import Prune, Quantize, Task
from paredown.core.errors import OrderError, ParityError, RecipeError
from paredown.measure.cost import count_parameters
from paredown.pipeline import schedule, steps, timings
from paredown.pipeline.evaluate import latency_of


def test_pruning_a_quantized_model_names_the_right_order(pattern_task: Task) -> None:
    quantized = paredown.quantize(pattern_task, Quantize(samples=64))
    with pytest.raises(OrderError, match="prune first"):
        paredown.prune(pattern_task, Prune(ratio=0.5), model=quantized)


def test_quantizing_twice_is_an_error(pattern_task: Task) -> None:
    quantized = paredown.quantize(pattern_task, Quantize(samples=64))
    with pytest.raises(OrderError, match="quantized once"):
        paredown.quantize(pattern_task, Quantize(), model=quantized)


def test_latency_goal_without_a_target_is_an_error(pattern_task: Task) -> None:
    with pytest.raises(RecipeError, match="need a target"):
        paredown.prune(pattern_task, Prune(latency="0.8x"))


def test_latency_goal_is_met_by_what_is_measured(pattern_task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def milliseconds(model: nn.Module) -> float:  # a clock without noise: half fixed, half by parameters
        return 1 + count_parameters(model) / count_parameters(pattern_task.model)

    for module in (schedule, timings):
        monkeypatch.setattr(module, "latency_of", lambda task, target: milliseconds)
    pruned = paredown.prune(pattern_task, Prune(latency="0.8x"), target="onnxruntime")
    assert 0.5 < milliseconds(pruned) / 2 <= 0.8


def test_latency_is_measured_on_the_exported_file(pattern_task: Task) -> None:
    measure = latency_of(pattern_task, paredown.Target(batch=4, threads=1))
    assert measure(pattern_task.model) > 0


@pytest.mark.parametrize("path", ["model.bin", "."])
def test_export_wants_a_file_that_ends_in_onnx(pattern_task: Task, tmp_path: Path, path: str) -> None:
    with pytest.raises(RecipeError, match="onnx"):
        paredown.export(pattern_task.model, pattern_task, path=tmp_path / path)


def test_file_that_disagrees_with_torch_is_not_left_behind(
    pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: object, **__: object) -> None:
        raise ParityError("the file must agree with torch", got="0.5", remedy="report it")

    monkeypatch.setattr(steps, "check_parity", diverges)
    with pytest.raises(ParityError):
        paredown.export(pattern_task.model, pattern_task, path=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
