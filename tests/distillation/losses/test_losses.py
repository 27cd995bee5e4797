"""Every loss: its gradient, its zero, no gradient to the teacher, and shapes that don't fit. By hand: the other files."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from paredown.core.errors import TaskError
from paredown.distillation.losses.attention_maps import attention_loss, attention_score_loss
from paredown.distillation.losses.attention_transfer import attention_transfer_loss
from paredown.distillation.losses.contrastive import contrastive_loss
from paredown.distillation.losses.dkd import dkd_loss
from paredown.distillation.losses.embedding import embedding_loss
from paredown.distillation.losses.hint import hint_loss
from paredown.distillation.losses.language import sequence_loss, token_loss
from paredown.distillation.losses.logit_mse import logit_mse_loss
from paredown.distillation.losses.multi_label import multi_label_loss
from paredown.distillation.losses.regression import bounded_regression_loss, regression_loss
from paredown.distillation.losses.relational import angle_loss, distance_loss
from paredown.distillation.losses.similarity import similarity_loss
from paredown.distillation.losses.soft_labels import soft_label_loss
from paredown.distillation.losses.standardized import standardized_loss
from paredown.distillation.losses.value_relations import value_relation_loss

Shape = tuple[int, ...]
MASK = torch.tensor([[True, True, False], [True, True, True]])
LABELS = torch.tensor([1, 0, 3])
TOKENS = torch.tensor([[1, 0, 3], [2, 2, 0]])
TARGETS = torch.tensor([[0.5, -1.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A loss, shapes of student and teacher that fit, and what is added to the student so that they don't."""

    loss: Callable[[Tensor, Tensor], Tensor]
    student: Shape
    teacher: Shape
    misfit: Shape
    zero_where_equal: bool = True


CASES = {
    "soft labels": Case(lambda s, t: soft_label_loss(s, t, 3.0), (3, 4), (3, 4), (3, 5)),
    "logit mse": Case(logit_mse_loss, (3, 4), (3, 4), (3, 5)),
    "standardized": Case(standardized_loss, (3, 4), (3, 4), (3, 5)),
    "standardized maps": Case(standardized_loss, (2, 4, 2, 3), (2, 4, 2, 3), (2, 5, 2, 3)),
    "dkd": Case(lambda s, t: dkd_loss(s, t, LABELS), (3, 4), (3, 4), (3, 5)),
    "multi-label": Case(lambda s, t: multi_label_loss(s, t, 2.0), (3, 4), (3, 4), (3, 5)),
    "regression": Case(regression_loss, (3, 2), (3, 2), (3, 3)),
    "bounded regression": Case(lambda s, t: bounded_regression_loss(s, t, TARGETS, 1e3), (3, 2), (3, 2), (3, 3), False),
    "attention transfer": Case(attention_transfer_loss, (2, 3, 4, 4), (2, 5, 4, 4), (3, 3, 4, 4)),
    "attention transfer, sequence": Case(attention_transfer_loss, (2, 3, 4), (2, 5, 8), (2, 3, 4, 4), False),
    "attention scores": Case(lambda s, t: attention_score_loss(s, t, MASK), (2, 2, 3, 3), (2, 2, 3, 3), (2, 3, 3, 3)),
    "attention": Case(
        lambda s, t: attention_loss(s.log_softmax(-1), t.log_softmax(-1)), (2, 2, 3, 3), (2, 2, 3, 3), (2, 3, 3, 3)
    ),
    "value relations": Case(lambda s, t: value_relation_loss(s, t, MASK), (2, 2, 3, 4), (2, 2, 3, 4), (2, 4, 3, 2)),
    "value relations, recut": Case(
        lambda s, t: value_relation_loss(s, t, MASK, heads=2), (2, 4, 3, 2), (2, 2, 3, 6), (2, 4, 4, 2)
    ),
    "hint": Case(hint_loss, (2, 3, 4, 4), (2, 3, 4, 4), (2, 4, 4, 4)),
    "hint, kept": Case(lambda s, t: hint_loss(s, t, kept=torch.tensor([0, 2])), (2, 2, 4), (2, 3, 4), (2, 3, 4), False),
    "similarity": Case(similarity_loss, (4, 3), (4, 3), (3, 3)),
    "similarity, maps": Case(similarity_loss, (3, 2, 2, 2), (3, 7), (1, 2, 2, 2)),
    "distance": Case(distance_loss, (4, 3), (4, 3), (3, 3)),
    "angle": Case(angle_loss, (4, 3), (4, 3), (2, 3)),
    "contrastive": Case(contrastive_loss, (4, 3), (4, 3), (4, 2), False),
    "token level": Case(lambda s, t: token_loss(s, t, MASK, temperature=2.0), (2, 3, 4), (2, 3, 4), (2, 3, 5)),
    "sequence level": Case(lambda s, _: sequence_loss(s, TOKENS, MASK), (2, 3, 4), (2, 3, 4), (2, 4, 4), False),
    "embedding": Case(embedding_loss, (3, 4), (3, 4), (3, 5)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def draw(shape: Shape, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@each_case
def test_gradient_is_the_derivative(case: Case) -> None:
    teacher = draw(case.teacher, 1)
    assert torch.autograd.gradcheck(lambda s: case.loss(s, teacher), draw(case.student, 0).requires_grad_())


@each_case
def test_loss_is_a_positive_scalar_and_zero_where_both_agree(case: Case) -> None:
    student, teacher = draw(case.student, 0), draw(case.teacher, 1)
    value = case.loss(student, teacher)
    assert value.dim() == 0 and float(value) > 0
    if case.student == case.teacher and case.zero_where_equal:
        agreed = teacher.clone().requires_grad_()
        same = case.loss(agreed, teacher)
        same.backward()
        assert agreed.grad is not None and float(same.detach()) == pytest.approx(0, abs=1e-12)
        assert torch.isfinite(agreed.grad).all() and float(agreed.grad.abs().max()) < 1e-6


@each_case
def test_no_gradient_reaches_the_teacher(case: Case) -> None:
    student, teacher = draw(case.student, 0).requires_grad_(), draw(case.teacher, 1).requires_grad_()
    case.loss(student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


@each_case
def test_shapes_that_do_not_fit_are_an_error(case: Case) -> None:
    with pytest.raises(TaskError):
        case.loss(draw(case.misfit, 0), draw(case.teacher, 1))
