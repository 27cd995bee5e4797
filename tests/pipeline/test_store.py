"""A run's folder: what a stage depends on, and what of a folder is ours to remove."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from paredown import Budget, Metric, Task
from paredown.core.errors import OutputError
from paredown.core.recipe import Recipe
from paredown.core.target import Target
from paredown.pipeline.evaluate import scratch_folder
from paredown.pipeline.store import Store, identity
from tests.conftest import pattern_batches

BUDGET = Budget(max_drop=0.05, size="0.5x")


def right(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).double()


def wrong(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) != target).double()


def halved(output: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(output, target) / 2


def other_last_batch(task: Task) -> list[Any]:
    batches = list(task.validation)
    return [*batches[:-1], (batches[-1][0] + 1, batches[-1][1])]


def with_another_stem(model: torch.nn.Module) -> torch.nn.Module:
    """The same class and weights; a convolution that pads by reflection."""
    other = copy.deepcopy(model)
    other.get_submodule("stem.0").padding_mode = "reflect"  # type: ignore[assignment]  # torch types attributes as modules
    return other


CHANGES: dict[str, Callable[[Task], Task]] = {
    "metric": lambda task: dataclasses.replace(task, metric=wrong),
    "direction of the metric": lambda task: dataclasses.replace(task, metric=Metric(right, higher_is_better=False)),
    "loss": lambda task: dataclasses.replace(task, loss=halved),
    "last validation batch": lambda task: dataclasses.replace(task, validation=other_last_batch(task)),
    "length of train": lambda task: dataclasses.replace(task, train=list(task.train)[:-1]),
    "own recovery": lambda task: dataclasses.replace(task, recover=lambda model: model),
    "protected modules": lambda task: dataclasses.replace(task, protect=("head",)),
    "length of the example inputs": lambda task: dataclasses.replace(task, example_inputs=(task.example_inputs[0][:2],)),
    "code of the model": lambda task: dataclasses.replace(task, model=with_another_stem(task.model)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_stages_of_another_task_are_not_taken_up(pattern_task: Task, change: Callable[[Task], Task]) -> None:
    task = dataclasses.replace(pattern_task, metric=right)
    same = identity(dataclasses.replace(task), BUDGET, Target(), 0)
    assert identity(task, BUDGET, Target(), 0) == same
    assert identity(change(task), BUDGET, Target(), 0) != same


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(pattern_batches(64, seed=1))


def test_a_stream_of_training_data_has_no_length_and_needs_none(pattern_task: Task) -> None:
    task = dataclasses.replace(pattern_task, train=DataLoader(Stream(), batch_size=None))
    assert identity(task, BUDGET, Target(), 0) == identity(task, BUDGET, Target(), 0)


@pytest.mark.parametrize("existing", ["resume", "replace"])
def test_folder_that_is_no_run_loses_nothing(tmp_path: Path, existing: Any) -> None:
    for name in (".git/HEAD", "checkpoint/mine.pt", "model.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="another folder"):
        Store.open(tmp_path, "", existing)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"HEAD", "mine.pt", "model.onnx"}


def test_run_with_something_else_beside_it_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / ".gitignore").write_text("mine")
    with pytest.raises(OutputError, match="gitignore"):
        Store.open(tmp_path, "", "replace")
    assert (tmp_path / "stages").is_dir()


def test_folder_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="name another"), scratch_folder(tmp_path / "file" / "run" / "stages" / "key"):
        pass


def test_scratch_folder_takes_the_empty_folders_around_it_along(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "run" / "stages" / "key") as scratch:
        assert scratch.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", ["resume", "replace"])
def test_scratch_folders_of_a_killed_run_are_removed_and_nothing_else(tmp_path: Path, existing: Any) -> None:
    scratch = [f"stages/.{'0a' * 8}-x1y_2z", f"stages/.{'0a' * 8}.costs.json-x1y_2z", ".result-x1y_2z"]
    for name in (*scratch, f"stages/{'0a' * 8}"):
        (tmp_path / name / "ready").mkdir(parents=True)
    Store.open(tmp_path, "", existing)
    assert not any((tmp_path / name).exists() for name in scratch)
    assert (tmp_path / "stages" / ("0a" * 8)).exists()


def test_what_is_cleared_is_what_a_run_writes_but_one_stage(tmp_path: Path) -> None:
    store = Store(tmp_path, "")
    old = [tmp_path / "stages" / f"{'0a' * 8}{end}" for end in ("", ".unfinished", ".costs.json")]
    for folder in (store.folder(Recipe()), *old, tmp_path / "checkpoint", tmp_path / "mine", tmp_path / "stages" / "mine"):
        folder.mkdir(parents=True)
    (tmp_path / "report.json").write_text("old")
    store.clear(keep=Recipe())
    left = [tmp_path / "mine", tmp_path / "stages", store.folder(Recipe()), tmp_path / "stages" / "mine"]
    assert sorted(tmp_path.rglob("*")) == sorted(left)
