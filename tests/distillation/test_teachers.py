"""Several teachers, and the student's own average."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Distill, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import OutputError, RecipeError, TaskError
from paredown.core.knowledge import AttentionTransfer
from paredown.distillation.teachers import OwnAverage, combined, confidences
from tests.conftest import SmallResNet, make_small_resnet

X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TRAINING = Training(effort=Effort(30, "steps"), learning_rate=0.05)
CONFIG = Distill(hard_weight=0, soft="logit_mse", training=TRAINING)


def task_of(model: nn.Module) -> Task:
    return Task(model, (X[:2],), [(x, None) for x in X.split(16)], [(X, torch.arange(32) % 10)])


def error(model: nn.Module, wanted: Tensor) -> float:
    with torch.no_grad():
        return float((model(X) - wanted).square().mean())


def test_a_mean_of_outputs_by_hand() -> None:
    one, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]])
    assert torch.equal(combined([[one], [other]], "mean")[0], torch.tensor([[2.0, 1.0]]))


def test_confidence_by_hand() -> None:
    sure, doubtful = torch.tensor([[math.log(9.0), 0.0]]), torch.tensor([[math.log(2.0), 0.0]])
    entropies = [-sum(p * math.log(p) for p in ps) / math.log(2) for ps in ((0.9, 0.1), (2 / 3, 1 / 3))]
    expected = (1 - entropies[0]) / (2 - sum(entropies))
    weights = confidences(torch.stack([sure, doubtful]))
    assert weights.shape == (2, 1, 1) and float(weights[0]) == pytest.approx(expected, abs=1e-4)
    assert torch.allclose(confidences(torch.zeros(3, 4, 5)), torch.tensor(1 / 3))


def test_a_student_learns_the_mean_of_its_teachers() -> None:
    teachers = [make_small_resnet(8, seed=1), make_small_resnet(12, seed=2)]
    student = make_small_resnet(8)
    with torch.no_grad():
        wanted = torch.stack([teacher(X) for teacher in teachers]).mean(0)
    found = paredown.distill(task_of(student), CONFIG, teacher=teachers)
    assert error(found, wanted) < 0.5 * error(student, wanted)
    sure = paredown.distill(task_of(student), CONFIG, teacher=nn.ModuleList(teachers), combine="confidence")
    assert not torch.equal(sure(X), found(X))


def test_hidden_layers_are_those_of_the_first_teacher() -> None:
    student, first = make_small_resnet(8), make_small_resnet(12, seed=1)
    config = Distill(hard_weight=0, soft=None, features=(AttentionTransfer(),), training=TRAINING)
    alone, both, reversed_ = (
        paredown.distill(task_of(student), config, teacher=given)
        for given in ([first], [first, make_small_resnet(8, seed=2)], [make_small_resnet(8, seed=2), first])
    )
    assert torch.equal(alone(X), both(X)) and not torch.equal(alone(X), reversed_(X))


def test_an_average_follows_its_student_and_starts_with_it() -> None:
    student = make_small_resnet(8)
    average = OwnAverage(student, decay=0.5)
    with torch.no_grad():
        assert torch.allclose(average(X)[0], student(X), atol=1e-6)
        student.get_parameter("head.bias").add_(1.0)
        before = average.model.get_parameter("head.bias").clone()
        average(X)
    assert torch.allclose(average.model.get_parameter("head.bias") - before, torch.tensor(0.75))  # decay 3/12 at the second step


def test_a_student_is_distilled_from_its_own_average() -> None:
    student = make_small_resnet(8)
    labels = torch.arange(32) % 10
    task = Task(student, (X[:2],), [(X, labels)], [(X, labels)])
    found = paredown.distill(task, Distill(hard_weight=0.5, training=TRAINING), teacher="ema")
    with torch.no_grad():
        losses = [float(nn.functional.cross_entropy(model(X), labels)) for model in (student, found)]
    assert losses[1] < losses[0]


def test_the_decay_of_an_average_decides_whom_a_student_follows(small_resnet: SmallResNet) -> None:
    config = Distill(hard_weight=0.5, training=TRAINING)
    task = Task(small_resnet, (X[:2],), [(X, torch.arange(32) % 10)], [(X, torch.arange(32) % 10)])
    named, same, other = (
        paredown.distill(task, config, teacher=given)
        for given in ("ema", paredown.MovingAverage(), paredown.MovingAverage(decay=0.0))
    )
    assert torch.equal(named(X), same(X)) and not torch.equal(named(X), other(X))
    with pytest.raises(RecipeError, match=r"decay must be in \[0, 1\]"):
        paredown.MovingAverage(decay=2)


@pytest.mark.parametrize("given", ["average", [], [1], 3])
def test_what_is_no_teacher_is_an_error(given: object, small_resnet: SmallResNet) -> None:
    with pytest.raises(RecipeError, match="leave it out"):
        paredown.distill(task_of(small_resnet), CONFIG, teacher=given)  # type: ignore[arg-type]  # what is refused


def test_teachers_of_other_outputs_are_an_error(small_resnet: SmallResNet) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(TaskError, match="the same shapes"):
        paredown.distill(task_of(small_resnet), CONFIG, teacher=[small_resnet, other])
    with pytest.raises(RecipeError, match="combine must be one of"):
        paredown.distill(task_of(small_resnet), CONFIG, combine="best")  # type: ignore[arg-type]  # what is refused


def test_an_average_follows_a_student_that_learns_its_scales() -> None:
    model = make_small_resnet()
    task = Task(model, (X[:2],), [(X, torch.arange(32) % 10)], [(X, torch.arange(32) % 10)])
    quantized = paredown.quantize(task, paredown.Quantize(bits=4, samples=16, scales="lsq"))
    config = Distill(training=Training(effort=Effort(3, "steps")))
    found = paredown.distill(task, config, model=quantized, teacher="ema")
    assert not torch.equal(found(X), quantized(X))


def test_combining_is_for_several(small_resnet: nn.Module) -> None:
    with pytest.raises(RecipeError, match="combine is for several teachers"):
        paredown.distill(task_of(small_resnet), CONFIG, combine="confidence")


def test_a_folder_that_cannot_be_made_is_told_before_the_training(small_resnet: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    steps: list[float] = []
    with pytest.raises(OutputError, match="what a teacher gives is kept in a folder that can be written to"):
        paredown.distill(
            task_of(small_resnet),
            CONFIG,
            teacher=paredown.Cached(small_resnet, tmp_path / "file" / "sub"),
            progress=lambda label, fraction: steps.append(fraction),
        )
    assert not steps
