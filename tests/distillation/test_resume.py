"""A distillation whose process was killed in the middle ends with the weights that it would have had."""

import copy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import paredown
from paredown import Distill, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import OutputError, TrainingDivergedError
from paredown.core.knowledge import AttentionTransfer, Blocks, Hint, SequenceLevel
from paredown.core.training import Resume
from tests.conftest import make_small_resnet, same_weights
from tests.distillation.test_language import Causal, agreement, next_token

X = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 10
TRAINING = Training(effort=Effort(12, "steps"), learning_rate=0.05)
STOP = 8  # the step in which it is killed; the last write was after step 6
SOFT = Distill(hard_weight=0.3, training=TRAINING)

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Stands for a signal where no other process is worth its time."""


class Stopping:
    """Cross entropy that calls `stop` in step STOP, and only in the first training that it sees."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop, self.steps = stop, 0
        self.__qualname__ = F.cross_entropy.__qualname__  # another loss's state wouldn't be taken up

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.steps += torch.is_grad_enabled()
        if self.steps == STOP + 1:
            self.stop()
        return F.cross_entropy(output, target)


def killed() -> None:
    raise Killed


def shuffled() -> DataLoader[tuple[Tensor, ...]]:
    """Batches of 16, 16 and 8: a sample meets others in each pass, so what a teacher remembers hangs on the first."""
    return DataLoader(TensorDataset(X, Y), 16, shuffle=True)


def task_of(loss: Any = F.cross_entropy) -> Task:
    return Task(make_small_resnet(8), (X[:2],), shuffled(), [(X, Y)], loss=loss)


def student() -> nn.Module:
    return make_small_resnet(8, seed=1)


def hang() -> None:
    sys.stdout.write("in the middle\n")
    sys.stdout.flush()
    time.sleep(600)


def test_after_sigkill_the_same_weights_come_out_bit_for_bit(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-m", __name__, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child, child.stdout:
        line = child.stdout.readline()
        child.kill()  # SIGKILL
    assert line == "in the middle\n"
    assert (tmp_path / "run" / "training" / "training.safetensors").is_file()
    torch.manual_seed(99)
    resumed = paredown.distill(task_of(), SOFT, model=student(), resume=Resume(tmp_path / "run", steps=3))
    assert same_weights(resumed, paredown.distill(task_of(), SOFT, model=student()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "teacher"),
    [
        (Distill(hard_weight=0.3, training=TRAINING, features=(AttentionTransfer(), Hint()), balance=True), None),
        (SOFT, "ema"),
        (SOFT, [make_small_resnet(8), make_small_resnet(12)]),
        (Distill(hard_weight=0.3, training=TRAINING, reconstruct=Blocks(training=TRAINING)), None),
    ],
    ids=["features, balanced", "own average", "several", "blocks first"],
)
def test_what_a_loss_carries_is_taken_up_too(config: Distill, teacher: Any, tmp_path: Path) -> None:
    place, model = Resume(tmp_path, steps=3), copy.deepcopy(task_of().model) if config.reconstruct else student()
    with pytest.raises(Killed):
        paredown.distill(task_of(Stopping(killed)), config, model=model, teacher=teacher, resume=place)
    assert any(tmp_path.rglob("training.safetensors"))
    resumed = paredown.distill(task_of(), config, model=model, teacher=teacher, resume=place)
    assert same_weights(resumed, paredown.distill(task_of(), config, model=model, teacher=teacher))


def test_text_that_was_written_is_not_written_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, model = Causal().eval(), Causal().eval()
    tokens = torch.randint(1, 12, (16, 8), generator=torch.Generator().manual_seed(0))
    config = Distill(hard_weight=0.1, soft=SequenceLevel(prompt=2, sampling=1.0), training=TRAINING)

    def task(loss: Any) -> Task:
        return Task(teacher, (tokens[:2],), [(tokens, tokens)], [(tokens, tokens)], loss=loss, metric=agreement)

    stopping = Stopping(killed)
    place = Resume(tmp_path, steps=3)

    def interrupted(output: Tensor, y: Tensor) -> Tensor:
        return stopping(output[:, 0], y[:, 1]) * 0 + next_token(output, y)

    interrupted.__qualname__ = next_token.__qualname__
    with pytest.raises(Killed):
        paredown.distill(task(interrupted), config, model=model, resume=place)
    resumed = paredown.distill(task(next_token), config, model=model, resume=place)
    assert same_weights(resumed, paredown.distill(task(next_token), config, model=model))


def test_only_what_is_ours_is_removed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    paredown.distill(task_of(), SOFT, model=student(), resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_training_that_diverged_is_not_taken_up(tmp_path: Path) -> None:
    stopping = Stopping(lambda: None)

    def diverging(output: Tensor, target: Tensor) -> Tensor:
        return stopping(output, target) * (float("nan") if stopping.steps > STOP else 1)

    with pytest.raises(TrainingDivergedError):
        paredown.distill(task_of(diverging), SOFT, model=student(), resume=Resume(tmp_path / "run", steps=3))
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_student_is_refused(tmp_path: Path) -> None:
    place = Resume(tmp_path, steps=3)
    with pytest.raises(Killed):
        paredown.distill(task_of(Stopping(killed)), SOFT, model=student(), resume=place)
    for other in (
        {"model": make_small_resnet(8, seed=2)},
        {"model": student(), "teacher": "ema"},
        {"model": student(), "seed": 1},
    ):
        with pytest.raises(OutputError, match="this very training"):
            paredown.distill(task_of(), SOFT, resume=place, **other)  # type: ignore[arg-type]  # of the right types


if __name__ == "__main__":
    torch.set_num_threads(1)
    paredown.distill(task_of(Stopping(hang)), SOFT, model=student(), resume=Resume(Path(sys.argv[1]), steps=3))


@pytest.mark.parametrize("change", ["protect", "loss", "activation"])
def test_a_training_of_another_task_is_not_taken_up(change: str, tmp_path: Path) -> None:
    place, model = Resume(tmp_path, steps=3), nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))

    def task(loss: Any = F.cross_entropy, **other: Any) -> Task:
        return Task(model, (X[:2],), [(X, Y)], [(X, Y)], loss=loss, **other)

    with pytest.raises(Killed):
        paredown.distill(task(Stopping(killed)), SOFT, resume=place)
    if change == "activation":
        model[2] = nn.Tanh()
    changed = {"protect": {"protect": ("1",)}, "loss": {"loss": lambda output, target: output.sum()}}.get(change, {})
    with pytest.raises(OutputError, match="another model, config or seed"):
        paredown.distill(task(**changed), SOFT, resume=place)
