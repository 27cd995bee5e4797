import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paredown.core.errors import TaskError
from paredown.distillation.losses.soft_labels import blend, soft_label_loss


def test_loss_is_the_one_computed_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    # at temperature 2 the teacher says 3/4 and 1/4, the student 1/2 each
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(soft_label_loss(student, teacher, 2.0)) == pytest.approx(4 * divergence, rel=1e-6)


def test_gradient_is_the_numerical_one() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda s: soft_label_loss(s, teacher, 3.0), (student,))


def test_gradient_at_a_high_temperature_is_the_difference_of_the_logits() -> None:
    """Hinton et al., eq. 4: (1 / classes) (student - teacher) for logits of mean 0."""
    student = torch.tensor([[0.3, -0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.5, 0.4, 0.1]], dtype=torch.float64)
    soft_label_loss(student, teacher, 1000.0).backward()
    assert torch.allclose(student.grad, (student - teacher).detach() / 3, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 20))
def test_loss_is_zero_for_equal_logits_and_positive_otherwise(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    assert float(soft_label_loss(a, a, temperature)) == pytest.approx(0, abs=1e-9)
    assert float(soft_label_loss(a, b, temperature)) > 0


def flat(logits: Tensor) -> Tensor:
    return logits.reshape(-1, logits.shape[-1])


def test_three_dimensions_have_the_classes_last() -> None:
    a, b = torch.randn(2, 4, 7, 5)
    assert torch.allclose(soft_label_loss(a, b, 2.0), soft_label_loss(flat(a), flat(b), 2.0), atol=1e-6)


def test_four_dimensions_have_the_classes_on_dimension_one() -> None:
    a, b = torch.randn(2, 4, 5, 3, 3)
    expected = soft_label_loss(flat(a.permute(0, 2, 3, 1)), flat(b.permute(0, 2, 3, 1)), 2.0)
    assert torch.allclose(soft_label_loss(a, b, 2.0), expected, atol=1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    soft_label_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 2.0), (1.0, 4.0), (0.25, 2.5)])
def test_blend_weighs_the_hard_loss(weight: float, expected: float) -> None:
    assert float(blend(torch.tensor(2.0), torch.tensor(4.0), weight)) == expected


def test_different_shapes_are_an_error_that_names_both() -> None:
    with pytest.raises(TaskError, match=r"\(2, 4\) and \(2, 3\); pass a teacher"):
        soft_label_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 1)])
def test_fewer_than_two_classes_are_an_error_with_its_remedy(shape: tuple[int, ...]) -> None:
    with pytest.raises(TaskError, match="hard_weight=1"):
        soft_label_loss(torch.zeros(shape), torch.zeros(shape), 1.0)
