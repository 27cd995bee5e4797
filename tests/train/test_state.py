"""A training that was interrupted goes on to the weights that it would have had."""

import copy
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from paredown.core.effort import Effort
from paredown.core.errors import ArtifactError, OutputError, RecipeError, TaskError
from paredown.core.training import Resume, Training
from paredown.task.batches import Batch, Batches
from paredown.train.loop import Loss, fit_
from paredown.train.schedule import Clock
from paredown.train.state import Keeping
from tests.conftest import same_weights

X = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 10
SHORT = Training(effort=Effort(8, "steps"), learning_rate=0.05)

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


class Drawing:
    """Batches that draw, before and within each pass, from every global generator."""

    def __iter__(self) -> Iterator[Batch]:
        for i in np.random.permutation(3):
            rows = slice(16 * i, 16 * i + 16)
            yield X[rows] + 0.1 * torch.randn(16, 1, 8, 8) + random.random(), Y[rows]

    def __len__(self) -> int:
        return 3


def dropped(model: nn.Module, batch: Batch) -> Tensor:
    """A loss that draws between the batches."""
    return F.cross_entropy(F.dropout(model(batch[0]), 0.2), batch[1])


def stopping(at: int, loss: Loss = dropped) -> Loss:
    steps = iter(range(1000))

    def stops(model: nn.Module, batch: Batch) -> Tensor:
        if next(steps) == at:
            raise Killed
        return loss(model, batch)

    return stops


def loader() -> Batches:
    return DataLoader(TensorDataset(X, Y), 16, shuffle=True)


def interrupted(model: nn.Module, batches: Batches, training: Training, keeping: Keeping, at: int) -> nn.Module:
    """What is left after a training was stopped in step `at` and another process took it up."""
    with pytest.raises(Killed):
        fit_(copy.deepcopy(model), batches, stopping(at), training, seed=1, keeping=keeping)
    torch.manual_seed(77), np.random.seed(77), random.seed(77)
    return fit_(copy.deepcopy(model), batches, dropped, training, seed=1, keeping=keeping)


@pytest.mark.parametrize(
    ("batches", "changes"),
    [
        (loader(), {"optimizer": "adamw", "ema": 0.9}),
        (Drawing(), {}),
        ([(X, Y), (X.flip(0), Y.flip(0))], {"channels_last": False, "clip": None}),
    ],
    ids=["shuffled", "drawing", "fixed"],
)
def test_an_interrupted_training_ends_with_the_same_weights_bit_for_bit(
    small_resnet: nn.Module, batches: Batches, changes: dict[str, object], tmp_path: Path
) -> None:
    training = dataclasses.replace(SHORT, **changes)
    whole = fit_(copy.deepcopy(small_resnet), batches, dropped, training, seed=1)
    keeping = Keeping(Resume(tmp_path / "training", steps=2))
    assert same_weights(interrupted(small_resnet, batches, training, keeping, at=5), whole)


@pytest.mark.parametrize("at", [0, 3, 7])
def test_it_may_be_interrupted_anywhere_also_where_a_pass_ends(small_resnet: nn.Module, at: int, tmp_path: Path) -> None:
    whole = fit_(copy.deepcopy(small_resnet), loader(), dropped, SHORT, seed=1)
    assert same_weights(interrupted(small_resnet, loader(), SHORT, Keeping(Resume(tmp_path, steps=1)), at), whole)


def test_no_step_is_done_twice_but_those_after_the_last_write(small_resnet: nn.Module, tmp_path: Path) -> None:
    keeping, seen = Keeping(Resume(tmp_path, steps=2)), []
    with pytest.raises(Killed):
        fit_(copy.deepcopy(small_resnet), loader(), stopping(5), SHORT, keeping=keeping)

    def counted(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(len(batch[1]))
        return dropped(model, batch)

    fit_(copy.deepcopy(small_resnet), loader(), counted, SHORT, keeping=keeping)
    assert len(seen) == 4  # of 8 steps, 4 of which were written
    fit_(small_resnet, loader(), counted, SHORT, keeping=keeping)
    assert len(seen) == 4  # what has ended is not trained again


def test_writing_changes_nothing(small_resnet: nn.Module, tmp_path: Path) -> None:
    written = fit_(copy.deepcopy(small_resnet), loader(), dropped, SHORT, keeping=Keeping(Resume(tmp_path, steps=1)))
    assert same_weights(written, fit_(small_resnet, loader(), dropped, SHORT))


def test_nothing_unfinished_is_left_and_nothing_is_written_before_it_is_time(small_resnet: nn.Module, tmp_path: Path) -> None:
    fit_(small_resnet, loader(), dropped, SHORT, keeping=Keeping(Resume(tmp_path, steps=1)))
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]
    with pytest.raises(Killed):
        fit_(small_resnet, loader(), stopping(5), SHORT, keeping=Keeping(Resume(tmp_path / "slow", seconds=3600)))
    assert not (tmp_path / "slow").exists()


@pytest.mark.parametrize(
    "other", [{"key": "another"}, {"training": dataclasses.replace(SHORT, learning_rate=1.0)}, {"width": 12}]
)
def test_the_state_of_another_training_is_refused(other: dict[str, object], tmp_path: Path) -> None:
    from tests.conftest import make_small_resnet

    fit_(make_small_resnet(8), loader(), dropped, SHORT, keeping=Keeping(Resume(tmp_path), "key"))
    given = {"key": "key", "training": SHORT, "width": 8, **other}
    with pytest.raises(OutputError, match="another model, config or seed; name another folder"):
        fit_(
            make_small_resnet(given["width"]), loader(), dropped, given["training"],  # type: ignore[arg-type]  # of the right type
            keeping=Keeping(Resume(tmp_path), str(given["key"])),
        )  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"cos\nsystem\n(S'true'\ntR."])
def test_a_file_that_cannot_be_read_is_an_error_with_its_remedy(small_resnet: nn.Module, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "training.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="delete its folder"):
        fit_(small_resnet, loader(), dropped, SHORT, keeping=Keeping(Resume(tmp_path)))


def test_a_folder_that_cannot_be_written_to_is_an_error(small_resnet: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="name another"):
        fit_(small_resnet, loader(), dropped, SHORT, keeping=Keeping(Resume(tmp_path / "file" / "inside", steps=1)))


def test_several_processes_are_refused(small_resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(TaskError, match="one process only, got 2; leave resume out"):
        fit_(small_resnet, loader(), dropped, SHORT, keeping=Keeping(Resume(tmp_path)))


def test_seconds_before_the_interruption_count() -> None:
    clock = Clock(seconds=10, start=0).after(4)
    assert 4 <= clock.spent() < 10 and clock.fraction(0) >= 0.4
    assert Clock(steps=4).after(3).fraction(1) == 0.25


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Resume(""), 'resume="runs/student"'),
        (lambda: Resume.of(3), "got 3"),  # type: ignore[arg-type]  # bad on purpose
        (lambda: Resume("runs", seconds=0), "got 0"),  # type: ignore[arg-type]  # a path as text
        (lambda: Resume("runs", steps=0), "steps=1"),  # type: ignore[arg-type]  # likewise
    ],
)
def test_where_to_keep_it_is_checked(make: object, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        make()  # type: ignore[operator]  # a function
