"""A pruning that was killed between its cuts, or in a training of its own, ends with the weights that it would have had."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import paredown
from paredown import ChannelAttention, Prune, Recipe, Schedule, Slimming, Task, Training, Widths
from paredown.core.effort import Effort
from paredown.core.errors import OutputError, TrainingDivergedError
from paredown.core.training import Resume
from paredown.distillation.teacher import Teacher
from paredown.pipeline import schedule
from tests.conftest import same_weights

SHORT = Training(effort=Effort(12, "steps"), learning_rate=0.05)
STEPWISE = Prune(ratio=0.5, schedule=Schedule(steps=3, between=Effort(12, "steps")), widths=Widths(round_to=2))
LEARNED = {
    "slimming": Prune(ratio=0.4, importance=Slimming(training=SHORT), widths=Widths(round_to=2)),
    "static gates": Prune(ratio=0.4, importance=ChannelAttention(training=SHORT), widths=Widths(round_to=2)),
    "gates by sample": Prune(
        ratio=0.4, importance=ChannelAttention(gate="squeeze_excite", training=SHORT), widths=Widths(round_to=2)
    ),
}

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Stands for a signal."""


class Stopping:
    """The task's loss, which is NaN, or ends the process, from a step on."""

    def __init__(self, at: int = 10**9, diverging: bool = False) -> None:
        self.at, self.diverging, self.steps = at, diverging, 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.steps += output.requires_grad
        if self.steps > self.at and not self.diverging:
            raise Killed
        return F.cross_entropy(output, target) * (float("nan") if self.steps > self.at else 1)


def run(task: Task, config: Prune, loss: Stopping, resume: Resume | None = None) -> nn.Module:
    """Batches are shuffled anew in each pass."""
    x, y = (torch.cat(column) for column in zip(*task.train, strict=True))
    batches: Any = DataLoader(TensorDataset(x[:320], y[:320]), 64, shuffle=True)
    return paredown.prune(dataclasses.replace(task, loss=loss, train=batches), config, resume=resume)


@pytest.mark.parametrize("at", [8, 20])
def test_a_schedule_goes_on_in_the_training_in_which_it_was_killed(
    pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = run(pattern_task, STEPWISE, Stopping())
    place = Resume(tmp_path / "run", steps=5)
    with pytest.raises(Killed):
        run(pattern_task, STEPWISE, Stopping(at), place)
    cuts, cut = [], schedule.prune_model

    def counted(*given: Any, **options: Any) -> nn.Module:
        cuts.append(1)
        return cut(*given, **options)

    monkeypatch.setattr(schedule, "prune_model", counted)
    rest = Stopping()
    resumed = run(pattern_task, STEPWISE, rest, place)
    assert same_weights(resumed, whole)
    assert len(cuts) == (2 if at < 12 else 1)
    assert rest.steps == 24 - at // 12 * 12 - 5  # of two trainings; what was written after step 5 of one is kept
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", LEARNED.values(), ids=list(LEARNED))
def test_the_training_of_a_learned_importance_goes_on_where_it_was_killed(
    pattern_task: Task, tmp_path: Path, config: Prune
) -> None:
    whole = run(pattern_task, config, Stopping())
    place = Resume(tmp_path, steps=5)
    with pytest.raises(Killed):
        run(pattern_task, config, Stopping(8), place)
    rest = Stopping()
    assert same_weights(run(pattern_task, config, rest, place), whole)
    assert rest.steps == 12 - 5


def test_an_interrupted_recipe_takes_up_a_schedule_in_its_middle(pattern_task: Task, tmp_path: Path) -> None:
    recipe = Recipe((STEPWISE,))

    def applied(loss: Stopping, resume: Resume | None) -> nn.Module:
        return paredown.apply(dataclasses.replace(pattern_task, loss=loss), recipe, resume=resume)

    whole = applied(Stopping(), None)
    place = Resume(tmp_path, steps=5)
    with pytest.raises(Killed):
        applied(Stopping(20), place)
    rest = Stopping()
    assert same_weights(applied(rest, place), whole) and rest.steps == 12 - 5
    assert [path.name for path in (tmp_path / "0-prune").iterdir()] == ["model"]


def test_the_folder_of_another_pruning_is_refused_and_one_that_diverged_is_gone(pattern_task: Task, tmp_path: Path) -> None:
    place = Resume(tmp_path / "run", steps=5)
    with pytest.raises(Killed):
        run(pattern_task, STEPWISE, Stopping(8), place)
    with pytest.raises(OutputError, match="this very work"):
        run(
            pattern_task, dataclasses.replace(STEPWISE, schedule=Schedule(steps=3, between=Effort(9, "steps"))), Stopping(), place
        )
    with pytest.raises(TrainingDivergedError):
        run(pattern_task, STEPWISE, Stopping(8, diverging=True), place)
    assert not (tmp_path / "run").exists()


def test_the_next_training_of_a_schedule_asks_the_teacher_nothing_again(
    pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, compute = [], Teacher.compute

    def counted(teacher: Teacher, inputs: Any) -> list[Tensor]:
        asked.append(len(inputs))
        return compute(teacher, inputs)

    monkeypatch.setattr(Teacher, "compute", counted)
    run(pattern_task, STEPWISE, Stopping(), Resume(tmp_path / "run"))
    assert asked == [64] * 5 + [64]  # the samples of one pass; then those of one batch, to hold against what is on disk
    assert not (tmp_path / "run").exists()
