"""Assistants between a teacher and its student."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paredown
from paredown import Distill, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.training import Resume
from paredown.distillation.losses.soft_labels import soft_label_loss
from paredown.distillation.teachers import Panel
from paredown.pipeline import chain
from tests.conftest import make_small_resnet, same_weights

X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SHORT = Distill(hard_weight=0, training=Training(effort=Effort(4, "steps"), learning_rate=0.05))


def task() -> Task:
    return Task(make_small_resnet(12), (X[:2],), [(x, None) for x in X.split(16)], [(X, torch.zeros(32).long())])


def models() -> list[nn.Module]:
    return [make_small_resnet(8, seed=1), make_small_resnet(4, seed=2)]


def test_each_learns_from_the_one_before_it() -> None:
    first, second = models()
    assistant, student = paredown.distill_chain(task(), [first, second], SHORT)
    assert same_weights(assistant, paredown.distill(task(), SHORT, model=first))
    assert same_weights(student, paredown.distill(task(), SHORT, model=second, teacher=assistant))
    assert same_weights(first, models()[0]) and same_weights(second, models()[1])


def test_a_student_gets_nearer_to_the_teacher_that_it_never_met() -> None:
    config = Distill(hard_weight=0, training=Training(effort=Effort(30, "steps"), learning_rate=0.05))
    teacher = task().model
    _, student = paredown.distill_chain(task(), models(), config)
    with torch.no_grad():
        before, after = (float(soft_label_loss(each(X), teacher(X), 4.0)) for each in (models()[1], student))
    assert after < 0.5 * before


def test_densely_each_learns_from_all_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(chain, "distill_resumable", lambda _task, _config, model, asked, **_: seen.append(asked) or model)
    given, teacher = models(), make_small_resnet(16)
    paredown.distill_chain(task(), given, SHORT, teacher=teacher, dense=True)
    assert seen == [Panel((teacher,)), Panel((teacher, given[0]))]


class Killed(BaseException):
    """Stands for a signal."""


def test_a_chain_that_was_killed_goes_on_with_the_link_that_it_was_at(tmp_path: Path, one_thread: None) -> None:
    labels: list[str] = []

    def stopping(label: str, _fraction: float) -> None:
        labels.append(label)
        if label.startswith("distill 2"):
            raise Killed

    with pytest.raises(Killed):
        paredown.distill_chain(task(), models(), SHORT, progress=stopping, resume=Resume(tmp_path / "run", steps=1))
    resumed = paredown.distill_chain(task(), models(), SHORT, resume=Resume(tmp_path / "run", steps=1))
    whole = paredown.distill_chain(task(), models(), SHORT)
    assert "distill 1 of 2" in labels and all(same_weights(a, b) for a, b in zip(resumed, whole, strict=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "config", "match"),
    [
        ([], SHORT, r"assistants and a student, got list"),
        (make_small_resnet(4), SHORT, r"got SmallResNet; write distill_chain\(task, \[middle, small\]\)"),
        (models(), [SHORT], "1 for 2 models"),
        (models(), [SHORT, F.cross_entropy], "one for each model"),
    ],
)
def test_chains_that_cannot_be_are_errors(given: Any, config: Any, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        paredown.distill_chain(task(), given, config)
