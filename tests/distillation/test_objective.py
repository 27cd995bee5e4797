"""Every kind of knowledge through the step itself: losses of outputs and hidden layers, weights, pairs, adapters, teachers."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import paredown
from paredown import Distill, Prune, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import BatchError, RecipeError, TaskError
from paredown.core.knowledge import (
    AttentionTransfer,
    Blocks,
    Contrastive,
    Embedding,
    Feature,
    Hint,
    Relational,
    Similarity,
)
from paredown.core.steps import Soft
from paredown.distillation.compared import attached, compare, feature_loss
from paredown.distillation.features import with_features
from paredown.distillation.objective import Objective, balanced
from paredown.distillation.outputs import soft_loss
from paredown.distillation.spread import Spread
from paredown.distillation.teacher import Teacher
from paredown.train.batchnorm import recalibrate_
from tests.conftest import SmallResNet, make_small_resnet

X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 10
ALL: tuple[Feature, ...] = (Hint(), AttentionTransfer(), Similarity(), Relational(), Embedding(), Contrastive())
LONGER = Training(effort=Effort(25, "steps"), learning_rate=0.05)
REGRESSION: dict[str, Any] = {"loss": F.mse_loss, "metric": lambda output, target: -(output - target).square().mean(1)}
each_feature = pytest.mark.parametrize("feature", ALL, ids=lambda feature: feature.kind)


class Plain(nn.Module):
    """Another class than SmallResNet, of other widths, whose modules stand in one nn.Sequential."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).mean((2, 3)))


def unlabelled(teacher: nn.Module) -> Task:
    return Task(teacher, (X[:2],), [(x, None) for x in X.split(16)], [(X, Y)])


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def gap(feature: Feature, student: nn.Module, teacher: nn.Module, pairs: tuple[tuple[str, str], ...]) -> float:
    """The feature loss without any adapter that was learned; hints start from the identity."""
    asked = Teacher(teacher)
    compared = compare(Distill(features=(feature,), pairs=pairs), asked, student, X)
    with torch.no_grad():
        _, ours = with_features(student.eval(), X, [each.pair.student for each in compared])
        _, theirs = asked.features(X, [each.pair.teacher for each in compared])
        return float(feature_loss(feature, compared, ours, theirs))


@pytest.mark.parametrize("feature", ALL[1:], ids=lambda feature: feature.kind)
def test_each_feature_loss_alone_brings_hidden_layers_nearer_without_labels(feature: Feature) -> None:
    torch.manual_seed(0)
    teacher, student = make_small_resnet(8), Plain().eval()
    config = Distill(hard_weight=0, soft=None, features=(feature,), pairs=(("two", "block2"),), training=LONGER)
    before = gap(feature, student, teacher, config.pairs)
    found = paredown.distill(unlabelled(teacher), config, model=student)
    after = gap(feature, found, teacher, config.pairs)
    assert after < 0.9 * before


def unexplained(student: nn.Module, teacher: nn.Module) -> float:
    """What the best linear map of the student's channels leaves of the teacher's features, as a share of their size."""
    with torch.no_grad():
        features = [
            with_features(model.eval(), X, ["two"])[1]["two"].movedim(1, -1).flatten(0, -2) for model in (student, teacher)
        ]
        s, t = (x - x.mean(0) for x in features)
        return float((t - s @ torch.linalg.lstsq(s, t).solution).square().sum() / t.square().sum())


def test_a_hint_through_an_adapter_makes_features_alike_up_to_a_linear_map() -> None:
    torch.manual_seed(0)
    teacher, student = Plain(4), Plain(6).eval()
    recalibrate_(teacher, [(X, None)])
    training = Training(effort=Effort(60, "steps"), learning_rate=0.1)
    config = Distill(hard_weight=0, soft=None, features=(Hint(),), pairs=(("two", "two"),), training=training)
    found = paredown.distill(unlabelled(teacher), config, model=student)
    assert unexplained(found, teacher) < 0.6 * unexplained(student, teacher)


@each_feature
def test_a_cut_student_learns_from_its_original(feature: Feature, pattern_task: Task) -> None:
    cut = paredown.prune(pattern_task, Prune(ratio=0.6, scope="uniform", widths=paredown.Widths(round_to=4)))
    config = Distill(hard_weight=0, soft=None, features=(feature,), training=LONGER)
    before, after = (gap(feature, m, pattern_task.model, ()) for m in (cut, paredown.distill(pattern_task, config, model=cut)))
    assert after < 0.8 * before


def test_a_cut_student_needs_no_adapter_and_an_independent_one_has_it_thrown_away() -> None:
    torch.manual_seed(0)
    teacher, student = make_small_resnet(8), Plain()
    config = Distill(features=(Hint(),), training=Training(effort=Effort(2, "steps")))
    assert all(each.adapter is None for each in compare(config, Teacher(teacher), copy.deepcopy(teacher), X))
    compared = compare(config, Teacher(teacher), student, X)
    assert all(each.adapter is not None for each in compared)
    with attached(student, compared):
        assert "_paredown_adapter_0" in dict(student.named_parameters())
        assert student(X).shape == (32, 10)
    names = list(student.state_dict())
    found = paredown.distill(unlabelled(teacher), dataclasses.replace(config, hard_weight=0), model=student)
    assert list(found.state_dict()) == names == list(student.state_dict())
    assert hooks(found) == hooks(student) == hooks(teacher) == 0


def test_a_hint_goes_without_an_adapter_where_that_is_asked_for() -> None:
    torch.manual_seed(0)
    teacher, student = Plain(4), Plain(4)
    config = Distill(hard_weight=0, soft=None, features=(Hint(adapter=False),), pairs=(("two", "two"),))
    compared = compare(config, Teacher(teacher), student, X)
    assert [each.adapter for each in compared] == [None]
    with pytest.raises(TaskError, match="put an adapter between them"):
        paredown.distill(unlabelled(teacher), config, model=Plain(6))


def test_outputs_that_are_kept_are_no_hidden_layers(tmp_path: Path) -> None:
    task, cached = unlabelled(make_small_resnet(8)), paredown.Cached(make_small_resnet(8), tmp_path)
    with pytest.raises(RecipeError, match=r"no hidden layers.*pass the model itself"):
        paredown.distill(task, Distill(hard_weight=0, features=(Hint(),)), model=make_small_resnet(8), teacher=cached)


def test_the_adapter_is_trained_with_the_student() -> None:
    torch.manual_seed(0)
    teacher, student = make_small_resnet(8), Plain()
    config = Distill(hard_weight=0, soft=None, features=(Hint(),), pairs=(("two", "block2"),))
    compared = compare(config, Teacher(teacher), student, X)
    objective = Objective(unlabelled(teacher), config, Teacher(teacher), compared)
    objective(student, (X, None)).backward()
    adapter = compared[0].adapter
    assert adapter is not None and all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in adapter.parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    torch.manual_seed(0)
    teacher, student = make_small_resnet(8), make_small_resnet(8, seed=1)
    task = Task(teacher, (X[:2],), [(X, Y)], [(X, Y)])
    asked, pairs = Teacher(teacher), (("block1", "block1"), ("block2", "block2"))
    config = Distill(
        hard_weight=0.3, soft="soft_labels", features=(AttentionTransfer(weight=7.0), Similarity(weight=11.0)), pairs=pairs
    )
    compared = compare(config, asked, student, X)
    _, ours = with_features(student, X, ["block1", "block2"])
    _, theirs = asked.features(X, ["block1", "block2"])
    expected = 0.7 * soft_loss("soft_labels", student(X), asked(X), None, 4.0) + 0.3 * F.cross_entropy(student(X), Y)
    expected = expected + 7 * feature_loss(AttentionTransfer(), compared, ours, theirs)
    expected = expected + 11 * feature_loss(Similarity(), compared, ours, theirs)
    found = Objective(task, config, asked, compared)(student, (X, Y))
    assert torch.allclose(found, expected, rtol=1e-5)


def test_balance_makes_gradients_equally_long_times_relative_weights() -> None:
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    base, steep, flat, still = (w * w).sum(), 100 * w.sum(), 0.01 * w[0], w.detach().sum()
    scales = balanced(base, [steep, flat, still], [9.0, 9.0, 9.0], [1.0, 2.0, 1.0], [w])
    assert scales[0] * 100 * 2**0.5 == pytest.approx(10) and scales[1] * 0.01 == pytest.approx(20)
    assert scales[2] == 9.0
    assert balanced(None, [steep, flat], [9.0, 9.0], [1.0, 1.0], [w]) == pytest.approx([1.0, 100 * 2**0.5 / 0.01])


def test_balance_is_measured_once_on_the_first_batch() -> None:
    torch.manual_seed(0)
    teacher, student = make_small_resnet(8), make_small_resnet(8, seed=1)
    config = Distill(hard_weight=0, soft="soft_labels", features=(AttentionTransfer(), Similarity()), balance=True)
    objective = Objective(unlabelled(teacher), config, Teacher(teacher), compare(config, Teacher(teacher), student, X))
    objective(student, (X, None))
    first = objective.scales
    objective(student, (2 * X, None))
    assert first is not None and objective.scales is first and all(scale > 0 for scale in first)


@pytest.mark.parametrize(
    "soft", ["soft_labels", "logit_mse", "standardized", "multi_label", "regression", "dkd", "embedding", "contrastive"]
)
def test_each_loss_of_outputs_brings_the_student_nearer(soft: Soft) -> None:
    torch.manual_seed(0)
    teacher, student = make_small_resnet(8), Plain().eval()
    config = Distill(hard_weight=0, soft=soft, training=LONGER)
    task = Task(teacher, (X[:2],), [(X, Y if soft == "dkd" else None)], [(X, Y)])
    found = paredown.distill(task, config, model=student)
    with torch.no_grad():
        before, after = (float(soft_loss(soft, model(X), [teacher(X)], Y, 4.0)) for model in (student, found))
    assert after < before


def test_features_are_asked_of_the_teacher_also_where_its_outputs_are_not() -> None:
    torch.manual_seed(0)
    teacher, student = make_small_resnet(8), Plain()
    task = Task(teacher, (X[:2],), [(X, Y)], [(X, Y)])
    plain, with_attention = (
        paredown.distill(task, Distill(hard_weight=1, features=f, training=LONGER), model=student)
        for f in ((), (AttentionTransfer(),))
    )
    assert not torch.equal(plain(X), with_attention(X))


@pytest.mark.parametrize(
    ("pairs", "error", "match"),
    [
        ((("nowhere", "block1"),), RecipeError, "nowhere"),
        ((("two", "nowhere"),), RecipeError, "nowhere"),
        ((("head", "head"),), TaskError, "features with positions"),
    ],
)
def test_pairs_that_cannot_be_compared_are_errors(pairs: Any, error: type[Exception], match: str) -> None:
    teacher, student = make_small_resnet(8), Plain()
    with pytest.raises(error, match=match):
        paredown.distill(unlabelled(teacher), Distill(hard_weight=0, features=(AttentionTransfer(),), pairs=pairs), model=student)
    assert hooks(teacher) == hooks(student) == 0
    assert not any("adapter" in name for name, _ in student.named_parameters())


def test_a_model_of_the_same_widths_but_other_depth_is_no_ancestor() -> None:
    """Names and widths of a ResNet-20 all occur in a ResNet-56; its stages still end elsewhere."""
    deep, shallow = (nn.Sequential(*(nn.Linear(4, 4) for _ in range(n))) for n in (6, 2))
    compared = compare(Distill(features=(Similarity(),)), Teacher(deep), shallow, torch.randn(8, 4))
    assert compared and not any(each.pair.exact for each in compared)
    assert compared[-1].pair.teacher != "1"


def test_classes_lie_where_the_target_says() -> None:
    logits, target = torch.randn(4, 3, 6), torch.zeros(4, 6, dtype=torch.int64)  # (batch, classes, length)
    shifted = [logits + torch.randn(4, 1, 6)]  # the same probabilities
    assert float(soft_loss("soft_labels", logits, shifted, target, 2.0)) == pytest.approx(0, abs=1e-5)
    assert float(soft_loss("soft_labels", logits, shifted, None, 2.0)) > 0.01  # (batch, length, classes)


def test_outputs_that_hardly_vary_do_not_outweigh_the_others() -> None:
    teacher = torch.cat([torch.randn(64, 2), 1e-6 * torch.randn(64, 1)], 1)
    student = teacher + 0.1
    loss = float(soft_loss("regression", student, [teacher], None, 1.0))
    assert loss < 0.01 * 1e6 * 2  # as if the third varied by a thousandth of the others


def test_spread_is_that_of_all_batches_and_goes_on_from_what_was_kept() -> None:
    x = torch.randn(30, 3, dtype=torch.float64) * 5 + 2
    spread = Spread()
    for part in x[:20].split(2):
        spread([part])
    other = Spread()
    other.take_up_(spread.keep())
    for each in (spread, other):
        (variance,) = each([x[20:]])
        assert torch.allclose(variance, x.var(0, unbiased=False, keepdim=True))


def test_small_batches_of_numbers_are_weighed_by_the_spread_of_all() -> None:
    task = Task(
        nn.Linear(3, 2), (torch.ones(2, 3),), [(torch.ones(2, 3), None)], [(torch.ones(2, 3), torch.ones(2, 2))], **REGRESSION
    )
    objective = Objective(task, Distill(hard_weight=0, soft="regression"), Teacher(task.model))
    student, found = copy.deepcopy(task.model), []
    with torch.no_grad():
        student.get_parameter("bias").add_(0.1)
    for x in torch.randn(400, 3).split(2):
        found.append(float(objective(student, (x, None)).detach()))
    with torch.no_grad():
        expected = float((0.01 / task.model(torch.randn(5000, 3)).var(0)).mean())
    assert max(found[100:]) < 2 * expected


class Shifting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.sub_(2.0))
        return y


def test_a_forward_that_changes_its_inputs_is_refused() -> None:
    x = torch.randn(8, 4)
    task = Task(Shifting().eval(), (torch.randn(2, 4),), [(x, torch.zeros(8, dtype=torch.int64))], [(x, torch.zeros(8))])
    with pytest.raises((TaskError, BatchError), match="must leave its inputs as they are"):
        paredown.distill(task, Distill(training=Training("1 steps")))


def test_a_train_step_that_returns_a_number_is_an_error(small_resnet: SmallResNet) -> None:
    def step(model: nn.Module, batch: Any) -> Any:
        return float(F.cross_entropy(model(batch[0]), batch[1]))

    task = Task(small_resnet, (X[:2],), [(X, Y)], [(X, Y)], train_step=step)
    with pytest.raises(TaskError, match="train_step must return the loss, got float"):
        paredown.distill(task, Distill(training=Training("1 steps")))


def test_pairs_of_features_without_channels_are_an_error(small_resnet: SmallResNet) -> None:
    student = Plain()
    config = Distill(features=(Hint(),), pairs=(("none", "stem"),), training=Training("1 steps"))
    task = Task(small_resnet, (X[:2],), [(X, Y)], [(X, Y)])
    with pytest.raises((TaskError, RecipeError), match="none"):
        paredown.distill(task, config, model=student)


def test_options_that_are_no_booleans_are_errors() -> None:
    for wrong in ({"recalibrate": "no"}, {"features": (Hint(),), "balance": "no"}):
        with pytest.raises(RecipeError, match="must be a bool"):
            Distill(**wrong)  # type: ignore[arg-type]  # the point
    with pytest.raises(RecipeError, match="channels_last must be a bool"):
        Training(channels_last="no")  # type: ignore[arg-type]  # the point


def test_guessed_pairs_are_told(caplog: pytest.LogCaptureFixture, small_resnet: SmallResNet) -> None:
    task = Task(small_resnet, (X[:2],), [(X, Y)], [(X, Y)])
    config = Distill(features=(AttentionTransfer(),), training=Training("1 steps"))
    with caplog.at_level("INFO", "paredown"):
        paredown.distill(task, config, model=paredown.prune(task, Prune(ratio=0.3, importance="l1")))
        assert not caplog.messages  # the cut tells
        paredown.distill(task, config, model=Plain())
    (told,) = caplog.messages
    assert str(paredown.propose_pairs(small_resnet, Plain(), X)[0]) in told and "Distill(pairs=...)" in told


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield X, Y


@pytest.mark.parametrize("batches", [Endless(), DataLoader(Endless(), batch_size=None)], ids=["an iterable", "a DataLoader"])
def test_batches_without_an_end_train_for_an_effort_in_steps(small_resnet: SmallResNet, batches: Any) -> None:
    task = Task(small_resnet, (X[:2],), batches, [(X, Y)])
    found = paredown.distill(task, Distill(recalibrate=False, training=Training("2 steps")))
    assert not torch.equal(found(X), small_resnet(X))


def test_frozen_modules_stay_while_blocks_and_layers_are_learned(small_resnet: SmallResNet) -> None:
    task = Task(small_resnet, (X[:2],), [(X, Y)], [(X, Y)])
    cut = paredown.prune(task, Prune(ratio=0.5, importance="l1"))
    config = Distill(
        reconstruct=Blocks(training=Training("6 steps"), solve=False), training=Training("1 steps", freeze=("block1", "stem"))
    )
    found = paredown.distill(task, config, model=cut)
    assert torch.equal(found.get_parameter("block1.conv1.weight"), cut.get_parameter("block1.conv1.weight"))
    cut.get_submodule("block1").requires_grad_(False)
    solved = paredown.distill(task, Distill(reconstruct=True, training=Training("1 steps")), model=cut)
    assert torch.equal(solved.get_parameter("block1.conv2.weight"), cut.get_parameter("block1.conv2.weight"))
