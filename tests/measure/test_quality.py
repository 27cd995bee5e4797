from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import BatchError, MetricError, NotFiniteError, TaskError
from paredown.measure.quality import Scores, drop, quality, samples_needed, score
from paredown.task.metric import CORPUS, Metric, top1
from paredown.task.task import Task

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
LABELS = X.argmax(1)


def batches(x: Tensor = X, y: Tensor = LABELS, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def make_task(metric: Any = top1, **other: Any) -> Task:
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
        model.bias.zero_()
    return Task(model, (X[:2],), batches(), **{"validation": batches(), "metric": metric, **other})


def wrong_on(count: int) -> Any:
    """The identity, but the first `count` samples of the split get the wrong class."""
    wrong = X[:count]

    def predict(x: Tensor) -> Tensor:
        lost = (x[:, None] == wrong[None]).all(2).any(1)
        return torch.where(lost[:, None], -x, x)

    return predict


def mean_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.max(1).values - 1).abs()


def correlation(output: Tensor, target: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([output[:, 0].double(), target.double()]))[0, 1]


def test_score_is_the_mean_over_samples_not_over_batches() -> None:
    scores = score(wrong_on(4), make_task(), "validation")  # batches of 16, 16, 8; the first holds the wrong ones
    assert scores.value == 36 / 40
    assert (scores.n, scores.name, scores.higher_is_better) == (40, "top-1", True)
    assert scores.values is not None and scores.values.dtype == np.float64 and scores.values.shape == (40,)


def test_drop_of_a_worse_candidate_is_positive_with_bounds_on_either_side() -> None:
    task = make_task()
    found = drop(score(wrong_on(0), task, "validation"), score(wrong_on(4), task, "validation"))
    assert (found.metric, found.value, found.n) == ("drop", pytest.approx(0.1), 40)
    assert found.low is not None and found.high is not None
    assert 0.0 < found.low < 0.1 < found.high
    assert found.high > 0.2


def test_drop_of_a_better_candidate_is_negative() -> None:
    task = make_task()
    assert drop(score(wrong_on(4), task, "validation"), score(wrong_on(0), task, "validation")).value == pytest.approx(-0.1)


def test_drop_of_lower_is_better_metrics_has_its_sign_turned() -> None:
    def errors(output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) != target).double()

    task = make_task(Metric(errors, higher_is_better=False))
    baseline, worse = score(wrong_on(0), task, "validation"), score(wrong_on(4), task, "validation")
    found = drop(baseline, worse)
    plain = drop(score(wrong_on(0), make_task(), "validation"), score(wrong_on(4), make_task(), "validation"))
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_drop_without_any_flip_is_not_claimed_to_be_certain() -> None:
    task = make_task()
    found = drop(score(wrong_on(0), task, "validation"), score(wrong_on(0), task, "validation"))
    assert found.value == 0
    assert found.high == pytest.approx(1 - 0.0495 ** (1 / 40), abs=1e-5)


def test_drop_of_scores_from_themselves_is_exactly_zero() -> None:
    scores = score(wrong_on(2), make_task(), "validation")
    found = drop(scores, scores)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_drop_of_real_valued_metrics_is_bootstrapped_with_the_seed() -> None:
    task = make_task(Metric(mean_error, higher_is_better=False))
    baseline = score(lambda x: x, task, "validation")
    candidate = score(lambda x: x + 0.1 * torch.sin(50 * x), task, "validation")
    found = drop(baseline, candidate, seed=1)
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    assert found == drop(baseline, candidate, seed=1)
    assert found != drop(baseline, candidate, seed=2)


def test_equal_real_valued_scores_leave_a_chance_of_a_difference() -> None:
    task = make_task(Metric(mean_error, higher_is_better=False))
    found = drop(score(lambda x: x, task, "validation"), score(lambda x: x, task, "validation"))
    assert found.value == 0
    assert found.high is not None and found.low is not None
    assert found.high > 0 > found.low


def test_corpus_metric_sees_the_whole_split_at_once() -> None:
    task = make_task(Metric(correlation, kind=CORPUS))
    scores = score(lambda x: x, task, "validation")
    assert scores.value == pytest.approx(float(correlation(X, LABELS)))
    assert scores.values is None and scores.outputs.shape == (40, 3)
    found = drop(scores, score(lambda x: -x, task, "validation"))
    assert found.value == pytest.approx(2 * scores.value)
    assert found.low is not None and found.high is not None
    assert min(found.low, found.high) < found.value < max(found.low, found.high)


def test_equal_corpus_scores_leave_a_chance_of_a_difference() -> None:
    task = make_task(Metric(correlation, kind=CORPUS))
    found = drop(score(lambda x: x, task, "validation"), score(lambda x: x, task, "validation"))
    assert found.value == 0 and found.high is not None and found.high > 0


def test_corpus_metric_takes_nests() -> None:
    def first(outputs: dict[str, Tensor], targets: Tensor) -> float:
        return float((outputs["logits"].argmax(1) == targets).double().mean())

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x}

    task = Task(Named(), (X[:2],), batches(), batches(), metric=Metric(first, kind=CORPUS), loss=lambda o, t: o["logits"].mean())
    assert score(task.model, task, "validation").value == 1.0


def test_quality_has_exact_bounds_for_zero_one_metrics() -> None:
    found = quality(score(wrong_on(0), make_task(), "validation"))
    assert (found.metric, found.value, found.high) == ("top-1", 1.0, 1.0)
    assert found.low == pytest.approx(0.05 ** (1 / 40))


@pytest.mark.parametrize("metric", [Metric(mean_error), Metric(correlation, kind=CORPUS)])
def test_quality_of_other_metrics_is_bootstrapped(metric: Metric) -> None:
    found = quality(score(lambda x: x, make_task(metric), "validation"))
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high


def test_samples_in_another_order_are_an_error_with_its_remedy() -> None:
    task = make_task()
    other = make_task(validation=batches(X.flip(0), LABELS.flip(0)))
    with pytest.raises(BatchError, match="shuffle=False"):
        drop(score(wrong_on(0), task, "validation"), score(wrong_on(0), other, "validation"))


def test_batches_of_another_size_are_the_same_samples() -> None:
    task, other = make_task(), make_task(validation=batches(size=7))
    assert drop(score(wrong_on(0), task, "validation"), score(wrong_on(1), other, "validation")).value == pytest.approx(0.025)


def test_different_metrics_are_an_error() -> None:
    with pytest.raises(MetricError, match="same metric"):
        drop(score(wrong_on(0), make_task(), "validation"), score(wrong_on(0), make_task(Metric(mean_error)), "validation"))


def test_missing_split_is_an_error_with_its_remedy() -> None:
    with pytest.raises(TaskError, match=r"no test data.*pass Task\(test=...\)"):
        score(lambda x: x, make_task(), "test")


def test_outputs_with_nan_are_an_error() -> None:
    with pytest.raises(NotFiniteError, match="the output on validation must be finite, got NaN"):
        score(lambda x: x / 0 * 0, make_task(), "validation")


@pytest.mark.parametrize("predict", [lambda x: x[:1], lambda x: x[:, 0]])
def test_outputs_of_the_wrong_shape_are_a_metric_error(predict: Any) -> None:
    with pytest.raises(MetricError):
        score(predict, make_task(), "validation")


def test_samples_needed_stands_beside_the_drop() -> None:
    assert samples_needed(0.01, 0.95) == 300


def test_scores_are_frozen() -> None:
    scores = score(wrong_on(0), make_task(), "validation")
    assert isinstance(scores, Scores)
    with pytest.raises(AttributeError):
        scores.value = 1.0  # type: ignore[misc]  # that it can't be set is what is tested
