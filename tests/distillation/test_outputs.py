"""Losses of outputs that read the target: their weights, and what they ask of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from paredown import DKD, BoundedRegression, Distill, Task, Training
from paredown.core.errors import RecipeError, TaskError
from paredown.distillation.outputs import soft_loss
from tests.conftest import SmallResNet

X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 10


def test_the_parts_of_decoupled_distillation_have_weights_of_their_own() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(32, 10), torch.randn(32, 10)
    both, first, second = (
        soft_loss(soft, student, [teacher], Y, 4.0) for soft in ("dkd", DKD(alpha=1, beta=0), DKD(alpha=0, beta=1))
    )
    assert torch.allclose(both, first + 8 * second)
    with pytest.raises(RecipeError, match="DKD needs a part"):
        DKD(alpha=0, beta=0)


def test_a_bounded_regression_learns_only_where_the_teacher_is_better() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    wanted = x @ torch.randn(4, 2)
    bad, good = nn.Linear(4, 2), nn.Linear(4, 2)
    with torch.no_grad():
        bad.weight.mul_(100)
    good.load_state_dict({"weight": torch.linalg.lstsq(x, wanted).solution.T, "bias": torch.zeros(2)})
    student, moved = nn.Linear(4, 2), []
    for teacher in (bad, good):
        task = Task(teacher, (x[:2],), [(x, wanted)], [(x, wanted)], metric=_distance, loss=F.mse_loss)
        config = Distill(
            hard_weight=0, soft=BoundedRegression(), training=Training("25 steps", learning_rate=0.05, weight_decay=0)
        )
        found = paredown.distill(task, config, model=student)
        moved.append(not torch.equal(found(x), student(x)))
    assert moved == [False, True]
    with pytest.raises(TaskError, match=r'bounded_regression needs a target.*soft="regression"'):
        soft_loss(BoundedRegression(), torch.zeros(3, 2), [torch.zeros(3, 2)], None, 4.0)


def _distance(output: Tensor, target: Tensor) -> Tensor:
    return -(output - target).square().mean(1)


@pytest.mark.parametrize("target", [torch.full((32,), -100), torch.full((32,), 10)])
def test_dkd_names_class_numbers_that_are_none(target: Tensor) -> None:
    with pytest.raises(TaskError, match="one class number a sample, from 0 to 9"):
        soft_loss("dkd", torch.randn(32, 10), [torch.randn(32, 10)], target, 4.0)


def test_dkd_without_labels_is_an_error_with_its_remedy(small_resnet: SmallResNet) -> None:
    with pytest.raises(TaskError, match='soft="soft_labels"'):
        paredown.distill(
            Task(small_resnet, (X[:2],), [(x, None) for x in X.split(16)], [(X, Y)]), Distill(hard_weight=0, soft="dkd")
        )
