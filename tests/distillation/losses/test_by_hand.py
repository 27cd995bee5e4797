"""Every loss against a small case computed from its equation with plain numbers."""

import math

import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.distillation.losses.attention_maps import attention_loss, attention_score_loss
from paredown.distillation.losses.attention_transfer import attention_transfer_loss
from paredown.distillation.losses.contrastive import contrastive_loss
from paredown.distillation.losses.dkd import dkd_loss
from paredown.distillation.losses.embedding import embedding_loss
from paredown.distillation.losses.hint import adapter, hint_loss
from paredown.distillation.losses.language import sequence_loss, token_loss
from paredown.distillation.losses.logit_mse import logit_mse_loss
from paredown.distillation.losses.multi_label import multi_label_loss
from paredown.distillation.losses.regression import bounded_regression_loss, regression_loss
from paredown.distillation.losses.relational import angle_loss, distance_loss
from paredown.distillation.losses.similarity import similarity_loss
from paredown.distillation.losses.soft_labels import soft_label_loss
from paredown.distillation.losses.standardized import standardized_loss
from paredown.distillation.losses.value_relations import relation, value_relation_loss

LOG = math.log


def t(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(value: Tensor, expected: float) -> bool:
    return float(value) == pytest.approx(expected, rel=1e-6)


def test_logit_mse() -> None:
    assert near(logit_mse_loss(t([1, 2], [0, 0]), t([0, 0], [0, 4])), (1 + 4 + 16) / 4 / 2)


def test_standardized_ignores_size_and_offset_of_the_logits() -> None:
    # (0, 2) -> (-1, 1); (3, 1) -> (1, -1); at T = 2: p = sigmoid(-1), sigmoid(1)
    p = 1 / (1 + math.exp(1))
    expected = 4 * (p * LOG(p / (1 - p)) + (1 - p) * LOG((1 - p) / p))
    assert near(standardized_loss(t([3, 1]), t([0, 2]), 2.0), expected)
    assert near(standardized_loss(t([300, 100]) + 7, t([0, 2]), 2.0), expected)


def test_dkd() -> None:
    # probabilities: teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2); target 0
    teacher, student = t([2, 1, 1]).log(), t([1, 1, 2]).log()
    target_part = 0.5 * LOG(0.5 / 0.25) + 0.5 * LOG(0.5 / 0.75)
    others = 0.5 * LOG(0.5 / (1 / 3)) + 0.5 * LOG(0.5 / (2 / 3))
    found = dkd_loss(student, teacher, torch.tensor([0]), temperature=1.0, alpha=2.0, beta=3.0)
    assert near(found, 2 * target_part + 3 * others)


def test_dkd_is_soft_labels_where_the_second_weight_is_the_teachers_doubt() -> None:
    teacher, student = torch.randn(2, 1, 5, dtype=torch.float64)
    doubt = 1 - float((teacher / 3).softmax(1)[0, 2])
    found = dkd_loss(student, teacher, torch.tensor([2]), temperature=3.0, alpha=1.0, beta=doubt)
    assert near(found, float(soft_label_loss(student, teacher, 3.0)))


@pytest.mark.parametrize(
    ("shape", "target"), [((2, 2), torch.zeros(2, dtype=torch.long)), ((2, 4), torch.rand(2, 4)), ((2, 4), torch.rand(2))]
)
def test_dkd_needs_three_classes_and_their_numbers(shape: tuple[int, int], target: Tensor) -> None:
    with pytest.raises(TaskError, match="soft labels"):
        dkd_loss(torch.rand(shape), torch.rand(shape), target)


def test_multi_label() -> None:
    teacher, student = t([0.0, LOG(3)]), t([LOG(3), LOG(3)])  # probabilities (1/2, 3/4) and (3/4, 3/4)
    expected = 0.5 * LOG(0.5 / 0.75) + 0.5 * LOG(0.5 / 0.25)
    assert near(multi_label_loss(student, teacher), expected)
    assert near(multi_label_loss(2 * student, 2 * teacher, 2.0), 4 * expected)


def test_multi_label_of_one_logit_a_sample_is_a_mean_over_samples() -> None:
    teacher, student = torch.randn(2, 6, dtype=torch.float64)
    assert near(multi_label_loss(student, teacher), float(multi_label_loss(student[:, None], teacher[:, None])))


def test_regression_is_in_units_of_the_teachers_spread() -> None:
    teacher, student = t([0, 5], [2, 5]), t([1, 5], [2, 8])  # variances 1 and none
    assert near(regression_loss(student, teacher), (1 + 0 + 0 + 9) / 4)
    assert near(regression_loss(student * t(10, 1), teacher * t(10, 1)), (1 + 0 + 0 + 9) / 4)


def test_bounded_regression_lets_go_of_samples_that_beat_the_teacher() -> None:
    target, teacher, student = t([0.0], [0.0]), t([2.0], [2.0]), t([1.0], [3.0])  # squares 1 and 9 against 4
    assert near(bounded_regression_loss(student, teacher, target), 9 / 2)
    assert near(bounded_regression_loss(student, teacher, target, margin=3.5), (1 + 9) / 2)


def test_attention_transfer() -> None:
    student = t([[[3.0, 0.0]], [[0.0, 2.0]]]).squeeze(0)[None].squeeze(2)  # 2 channels, positions with 9 and 4
    teacher = t([[0.0, 2.0]])  # 1 channel, positions with 0 and 4
    length = math.hypot(9, 4)
    assert near(attention_transfer_loss(student, teacher), (9 / length) ** 2 + (4 / length - 1) ** 2)


def test_attention_transfer_averages_the_finer_map() -> None:
    coarse = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert near(attention_transfer_loss(fine, coarse) + 1, 1)
    assert near(attention_transfer_loss(coarse, fine) + 1, 1)


def test_attention_scores_without_padding() -> None:
    student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, 50], [50, 50]]]])
    assert near(attention_score_loss(student, teacher, torch.tensor([[True, False]])), 4)
    assert near(attention_score_loss(student, teacher), (4 + 3 * 2500) / 4)


def test_attention() -> None:
    teacher, student = t(0.5, 0.5).log().view(1, 1, 1, 2), t(0.25, 0.75).log().view(1, 1, 1, 2)
    assert near(attention_loss(student, teacher), 0.5 * LOG(2) + 0.5 * LOG(2 / 3))


def test_attention_with_masked_keys_is_finite() -> None:
    scores = torch.tensor([[[[0.0, 1.0, -torch.inf]]]]).log_softmax(-1).requires_grad_()
    value = attention_loss(scores, torch.tensor([[[[1.0, 0.0, -torch.inf]]]]).log_softmax(-1))
    value.backward()
    assert float(value.detach()) > 0 and scores.grad is not None and torch.isfinite(scores.grad).all()


def test_value_relations() -> None:
    values = t([1, 0, 0, 0], [0, 2, 0, 0]).view(1, 1, 2, 4)  # products 1, 0, 0, 4; over sqrt(4)
    p = [math.exp(0.5) / (math.exp(0.5) + 1), 1 / (1 + math.exp(2))]
    expected = torch.tensor([[p[0], 1 - p[0]], [p[1], 1 - p[1]]], dtype=torch.float64)
    assert torch.allclose(relation(values).exp()[0, 0], expected)
    flat = torch.zeros(1, 1, 2, 7, dtype=torch.float64)  # every relation 1/2; another width
    divergence = sum(q * LOG(2 * q) for pair in p for q in (pair, 1 - pair)) / 2
    assert near(value_relation_loss(flat, values), divergence)


def test_value_relations_leave_padding_out() -> None:
    mask = torch.tensor([[True, True, False]])
    student, teacher = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64)
    changed = teacher.clone()
    changed[:, :, 2] = 9
    assert near(value_relation_loss(student, teacher, mask), float(value_relation_loss(student, changed, mask)))
    short = value_relation_loss(student[:, :, :2], teacher[:, :, :2])
    assert near(value_relation_loss(student, teacher, mask), float(short))
    with pytest.raises(TaskError, match="attention mask"):
        value_relation_loss(student, teacher, mask[:, :, None].expand(1, 3, 3))


def test_value_relations_need_heads_that_divide_both_widths() -> None:
    with pytest.raises(TaskError, match="common divisor"):
        value_relation_loss(torch.rand(1, 3, 4, 5), torch.rand(1, 2, 4, 5), heads=2)
    with pytest.raises(TaskError, match="pass heads="):
        value_relation_loss(torch.rand(1, 3, 4, 5), torch.rand(1, 2, 4, 5))


def test_hint_compares_kept_channels_only() -> None:
    student, teacher = t([[1.0, 1.0]]).transpose(1, 2), t([[2.0, 100.0, 1.0]]).transpose(1, 2)
    student, teacher = student.reshape(1, 2, 1), teacher.reshape(1, 3, 1)
    assert near(hint_loss(student, teacher, kept=torch.tensor([0, 2])), (1 + 0) / 2 / 2)


@pytest.mark.parametrize(
    ("student", "teacher", "axis", "kind"),
    [((2, 3, 4, 4), (2, 5, 4, 4), 1, nn.Conv2d), ((2, 6, 3), (2, 6, 5), -1, nn.Linear), ((2, 5, 4), (2, 3, 4), 1, nn.Conv1d)],
)
def test_adapter_starts_as_the_identity_on_what_both_have(
    student: tuple[int, ...], teacher: tuple[int, ...], axis: int, kind: type[nn.Module]
) -> None:
    x, y = torch.randn(student, dtype=torch.float64), torch.randn(teacher, dtype=torch.float64)
    found = adapter(x, y, axis=axis)
    assert isinstance(found, kind) and found(x).shape == y.shape and found(x).dtype == x.dtype
    both = min(student[axis], teacher[axis])
    assert torch.allclose(found(x).narrow(axis, 0, both), x.narrow(axis, 0, both))
    hint_loss(found(x), y).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() > 0 for p in found.parameters())


def test_similarity() -> None:
    student, teacher = t([1, 0], [0, 1]), t([1, 0], [1, 0])  # G: identity, and rows (1, 1) / sqrt(2)
    half = 1 / math.sqrt(2)
    assert near(similarity_loss(student, teacher), (2 * (1 - half) ** 2 + 2 * half**2) / 4)


def test_distance() -> None:
    student, teacher = t([0.0], [1.0], [3.0]), t([0.0], [0.0], [0.0]) + t([0.0], [3.0], [6.0])
    s, r = [1 / 2, 3 / 2, 2 / 2], [3 / 4, 6 / 4, 3 / 4]  # pairs (0, 1), (0, 2), (1, 2), over their means 2 and 4
    assert near(distance_loss(student, teacher), sum((a - b) ** 2 / 2 for a, b in zip(s, r, strict=True)) / 3)


def test_angle_of_triangles() -> None:
    equilateral = t([0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2])
    right = t([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])  # angles of 90, 45 and 45 degrees
    differences = [0.5 - 0, 0.5 - math.sqrt(0.5), 0.5 - math.sqrt(0.5)]
    assert near(angle_loss(equilateral, right), sum(d * d / 2 for d in differences) / 3)
    assert near(angle_loss(right, 5 * right + 3) + 1, 1)


@pytest.mark.parametrize(("loss", "least"), [(similarity_loss, 2), (distance_loss, 2), (contrastive_loss, 2), (angle_loss, 3)])
def test_relations_need_enough_samples(loss: object, least: int) -> None:
    with pytest.raises(TaskError, match=f"batches of at least {least}.*larger batches"):
        loss(torch.rand(least - 1, 3), torch.rand(least - 1, 3))  # type: ignore[operator]  # each a function of two tensors


def test_samples_that_are_equal_give_finite_gradients() -> None:
    for loss in (distance_loss, angle_loss):
        student = torch.ones(4, 3, dtype=torch.float64)
        student[3] = 2
        loss(student.requires_grad_(), torch.randn(4, 3, dtype=torch.float64)).backward()
        assert student.grad is not None and torch.isfinite(student.grad).all()


def test_contrastive() -> None:
    student, teacher = t([2, 0], [0, 3]), t([1, 0], [1, 1])
    rows = [[1, math.sqrt(0.5)], [0, math.sqrt(0.5)]]
    log_likelihood = [row[i] / 0.5 - LOG(sum(math.exp(c / 0.5) for c in row)) for i, row in enumerate(rows)]
    assert near(contrastive_loss(student, teacher, 0.5), -sum(log_likelihood) / 2)


def test_token_level_counts_only_what_the_mask_tells() -> None:
    teacher, student = t([[1, 1], [1, 3]]).log(), t([[1, 3], [9, 1]]).log()
    first = 0.5 * LOG(2) + 0.5 * LOG(2 / 3)
    second = 0.25 * LOG(0.25 / 0.9) + 0.75 * LOG(0.75 / 0.1)
    assert near(token_loss(student, teacher), (first + second) / 2)
    assert near(token_loss(student, teacher, torch.tensor([[1, 0]])), first)
    with pytest.raises(TaskError, match="attention mask"):
        token_loss(student, teacher, torch.ones(1, 3))


def test_sequence_level_is_the_likelihood_of_the_next_token() -> None:
    student = t([[1, 3], [9, 1], [5, 5]]).log()
    written = torch.tensor([[0, 1, 1]])
    assert near(sequence_loss(student, written), -(LOG(0.75) + LOG(0.1)) / 2)
    assert near(sequence_loss(student, written, torch.tensor([[True, True, False]])), -LOG(0.75))
    with pytest.raises(TaskError, match="what the teacher wrote"):
        sequence_loss(student, written[:, :2])


def test_embedding() -> None:
    assert near(embedding_loss(t([3, 0], [1, 1]), t([1, 0], [0, 5])), (0 + 1 - math.sqrt(0.5)) / 2)
