"""Steps in an order that can't work, and goals without what they need."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Budget, Distill, Prune, Quantize, Recipe, Task
from paredown.core.errors import NothingToQuantizeError, OrderError, ParedownError, ParityError, RecipeError, TaskError
from paredown.measure.cost import count_parameters
from paredown.pipeline import evaluate, schedule, timings
from paredown.pipeline.evaluate import latency_of

MISUSED: dict[str, tuple[Callable[[Task, Path], object], str]] = {
    "a number for a config": (lambda task, _: paredown.prune(task, 0.5), "config must be a Prune, got float"),  # type: ignore[arg-type]
    "a class for a config": (lambda task, _: paredown.distill(task, Distill), "must be a Distill, got Distill"),  # type: ignore[arg-type]
    "another step's config": (lambda task, _: paredown.sparsify(task, Quantize()), "got Quantize"),  # type: ignore[arg-type]
    "the model for the task": (lambda task, _: paredown.quantize(task.model, Quantize()), "must be a paredown.Task"),  # type: ignore[arg-type]
    "model and task swapped": (lambda task, path: paredown.export(task, task.model, path=path / "m.onnx"), "paredown.Task"),  # type: ignore[arg-type]
    "the model to look at": (lambda task, _: paredown.analyze(task.model), "got SmallResNet"),  # type: ignore[arg-type]
    "a limit for a budget": (lambda task, path: paredown.compress(task, "0.5x", out=path), "budget must be a Budget, got str"),  # type: ignore[arg-type]
    "a recipe of nothing": (
        lambda task, path: paredown.compress(task, Budget(size="0.5x"), out=path, recipe=Recipe()), "must have steps, got none",
    ),
    "a word for a seed": (
        lambda task, path: paredown.compress(task, Budget(size="0.5x"), out=path, seed="a"), "seed must be a whole number",  # type: ignore[arg-type]
    ),
    "a word to apply": (lambda task, _: paredown.apply(task, "quantize"), "recipe must be a Recipe, got str"),  # type: ignore[arg-type]
    "a task to save": (lambda task, path: paredown.save_checkpoint(task, path / "c"), "must be a torch.nn.Module"),  # type: ignore[arg-type]
    "a file for a folder": (
        lambda task, path: paredown.export(task.model, task, path=Path(__file__) / "m.onnx"), "the file must be writable",
    ),
    "a path for a recipe": (
        lambda task, path: paredown.compress(task, Budget(size="0.5x"), out=path, recipe="r.yaml"), "recipe must be a Recipe",  # type: ignore[arg-type]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISUSED)
def test_argument_of_another_kind_is_a_typed_error(name: str, pattern_task: Task, tmp_path: Path) -> None:
    call, message = MISUSED[name]
    with pytest.raises(ParedownError, match=message):
        call(pattern_task, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Choice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


def test_importance_by_outputs_needs_some_that_are_numbers() -> None:
    x = torch.randn(8, 4)
    batch = (x, torch.zeros(8))
    model = nn.Sequential(nn.Linear(4, 8), Choice(8, 3))
    given = Task(model, (x[:2],), [(x, None)], [batch], metric=lambda output, target: (output == target).double())
    with pytest.raises(TaskError, match='importance="magnitude"'):
        paredown.prune(given, Prune(ratio=0.3, widths=paredown.Widths(round_to=1)))


def test_pruning_a_quantized_model_names_the_right_order(pattern_task: Task) -> None:
    quantized = paredown.quantize(pattern_task, Quantize(samples=64))
    with pytest.raises(OrderError, match="prune first"):
        paredown.prune(pattern_task, Prune(ratio=0.5), model=quantized)


def test_weights_in_64_bits_are_not_quantized() -> None:
    x = torch.randn(8, 4, dtype=torch.float64)
    batch = (x, torch.zeros(8).long())
    given = Task(nn.Linear(4, 2, dtype=torch.float64), (x[:2],), [batch], [batch])
    with pytest.raises(NothingToQuantizeError, match=r"float64; call model.float\(\)"):
        paredown.quantize(given, Quantize())


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

    monkeypatch.setattr(evaluate, "check_parity", diverges)
    with pytest.raises(ParityError):
        paredown.export(pattern_task.model, pattern_task, path=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
