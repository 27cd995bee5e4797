import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from paredown.core.effort import Effort
from paredown.core.errors import BatchError, NotTrainableError, TaskError
from paredown.core.steps import Distill, Training
from paredown.distillation.losses.soft_labels import soft_label_loss
from paredown.distillation.recover import distill_model
from paredown.task.batches import Batch
from paredown.task.task import Task
from tests.conftest import make_small_resnet

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 10
SHORT = Distill(training=Training(effort=Effort(4, "steps")), hard_weight=0.0)


def make_task(model: nn.Module, **other: Any) -> Task:
    batches = DataLoader(TensorDataset(X, Y), 16, shuffle=True)
    return Task(model, (X[:2],), **{"train": batches, "validation": [(X, Y)], **other})


def unlabelled() -> list[tuple[Tensor, None]]:
    return [(x, None) for x in X.split(16)]


def perturbed(model: nn.Module) -> nn.Module:
    spoilt = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in spoilt.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter) if parameter.dim() > 1 else 0.0)
    return spoilt


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def distance(student: nn.Module, teacher: nn.Module) -> float:
    with torch.no_grad():
        return float(soft_label_loss(copy.deepcopy(student).eval()(X), copy.deepcopy(teacher).eval()(X), 1.0))


def test_distillation_brings_the_student_nearer_to_the_teacher(small_resnet: nn.Module) -> None:
    with torch.no_grad():
        small_resnet.get_submodule("head").weight *= 20  # a teacher with something to say
    student = perturbed(small_resnet)
    config = dataclasses.replace(SHORT, training=Training(effort=Effort(20), learning_rate=0.05))
    found = distill_model(student, make_task(small_resnet), config)
    assert distance(found, small_resnet) < 0.5 * distance(student, small_resnet)


def test_neither_student_nor_teacher_is_touched(small_resnet: nn.Module) -> None:
    student, task = perturbed(small_resnet).train(), make_task(small_resnet)
    before, teacher_before = state(student), state(small_resnet)
    found = distill_model(student, task, SHORT)
    assert found is not student and not found.training
    assert equal(state(student), before) and student.training
    assert equal(state(small_resnet), teacher_before)
    assert not equal(state(found), before)


def test_the_same_seed_gives_the_same_student(small_resnet: nn.Module) -> None:
    task = make_task(small_resnet)
    first, second, other = (distill_model(perturbed(small_resnet), task, SHORT, seed=seed) for seed in (1, 1, 2))
    assert equal(state(first), state(second))
    assert not equal(state(first), state(other))


def test_another_teacher_can_be_named(small_resnet: nn.Module) -> None:
    wider = make_small_resnet(12, seed=3)
    config = dataclasses.replace(SHORT, training=Training(effort=Effort(20), learning_rate=0.05))
    found = distill_model(small_resnet, make_task(small_resnet), config, teacher=wider)
    assert distance(found, wider) < distance(small_resnet, wider)


def test_without_a_hard_loss_labels_are_never_read(small_resnet: nn.Module) -> None:
    def unread(*_: Tensor) -> Tensor:
        raise AssertionError

    task = make_task(small_resnet, train=unlabelled(), loss=unread)
    assert not equal(state(distill_model(small_resnet, task, SHORT)), state(small_resnet))


def test_a_hard_loss_without_targets_is_an_error_with_its_remedy(small_resnet: nn.Module) -> None:
    task = make_task(small_resnet, train=unlabelled())
    with pytest.raises(TaskError, match="hard_weight=0 to distill without labels"):
        distill_model(small_resnet, task, dataclasses.replace(SHORT, hard_weight=0.1))


def test_hard_weight_one_asks_no_teacher(small_resnet: nn.Module) -> None:
    class Unaskable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    config = dataclasses.replace(SHORT, hard_weight=1.0, training=Training(effort=Effort(10), learning_rate=0.1))
    found = distill_model(small_resnet, make_task(small_resnet), config, teacher=Unaskable())
    assert float(F.cross_entropy(found(X), Y)) < float(F.cross_entropy(small_resnet(X), Y))


@pytest.mark.parametrize(("hard_weight", "calls"), [(0.0, 0), (0.5, 4), (1.0, 4)])
def test_the_users_train_step_is_the_hard_loss(small_resnet: nn.Module, hard_weight: float, calls: int) -> None:
    seen: list[tuple[int, ...]] = []

    def train_step(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(tuple(batch[0].shape))
        return F.cross_entropy(model(batch[0]), batch[1])

    task = make_task(small_resnet, train_step=train_step)
    distill_model(small_resnet, task, dataclasses.replace(SHORT, hard_weight=hard_weight))
    assert seen == [(16, 1, 8, 8)] * calls


class Trained(nn.Linear):
    """In training mode it takes its targets, too, as its user's train_step knows."""

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        assert target is not None or not self.training
        return super().forward(x)


def test_batches_of_one_are_left_to_the_users_train_step() -> None:
    x, y = torch.randn(5, 3), torch.arange(5) % 2
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    task = Task(
        Trained(3, 2), (x[:2],), batches, batches, train_step=lambda model, batch: F.cross_entropy(model(*batch), batch[1])
    )
    found = distill_model(task.model, task, dataclasses.replace(SHORT, hard_weight=1.0))
    assert not equal(state(found), state(task.model))


def test_the_users_recover_is_called_on_a_recalibrated_copy_and_nothing_else(small_resnet: nn.Module) -> None:
    seen: list[nn.Module] = []

    def recover(model: nn.Module) -> nn.Module:
        seen.append(copy.deepcopy(model))
        return model.train()

    student = perturbed(small_resnet)
    found = distill_model(student, make_task(small_resnet, recover=recover), SHORT)
    assert len(seen) == 1 and found is not student and not found.training
    assert equal(state(found), state(seen[0]))
    assert torch.equal(found.get_submodule("head").weight, student.get_submodule("head").weight)
    assert not torch.equal(found.get_buffer("stem.1.running_mean"), student.get_buffer("stem.1.running_mean"))


@pytest.mark.parametrize(
    ("recover", "message"),
    [
        (nn.Sequential, "the SmallResNet that it was given, got Sequential"),
        (lambda _: make_small_resnet(4), r"\(4, 1, 3, 3\) for \(8,"),
    ],
    ids=["wrapped", "another"],
)
def test_recover_that_returns_another_model_is_an_error(small_resnet: nn.Module, recover: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        distill_model(small_resnet, make_task(small_resnet, recover=recover), SHORT)


def test_recover_that_returns_no_model_is_an_error(small_resnet: nn.Module) -> None:
    with pytest.raises(TaskError, match="recover must return a model, got NoneType"):
        distill_model(small_resnet, make_task(small_resnet, recover=lambda _: None), SHORT)


def test_batch_norms_keep_their_statistics_where_recalibration_is_off(small_resnet: nn.Module) -> None:
    task = make_task(small_resnet, recover=lambda model: model)
    found = distill_model(small_resnet, task, dataclasses.replace(SHORT, recalibrate=False))
    assert equal(state(found), state(small_resnet))


def test_attributes_of_the_model_survive(small_resnet: nn.Module) -> None:
    small_resnet.manifest = {"kept": (0, 2)}  # type: ignore[assignment]  # any attribute
    assert distill_model(small_resnet, make_task(small_resnet), SHORT).manifest == {"kept": (0, 2)}


def test_a_frozen_model_is_an_error(small_resnet: nn.Module) -> None:
    with pytest.raises(NotTrainableError, match="requires_grad_"):
        distill_model(copy.deepcopy(small_resnet).requires_grad_(False), make_task(small_resnet), SHORT)


def test_a_teacher_with_other_classes_is_an_error_that_names_both_shapes(small_resnet: nn.Module) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(TaskError, match=r"\(16, 7\) and \(16, 10\)"):
        distill_model(small_resnet, make_task(small_resnet), SHORT, teacher=teacher)


class TwoHeads(nn.Module):
    """Inputs by name; a dictionary with two floating-point outputs and one that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.a(x), "aux": (self.b(x), x.argmax(1))}


def test_inputs_by_name_and_nested_outputs_are_distilled() -> None:
    torch.manual_seed(0)
    teacher, student, x = TwoHeads(), TwoHeads(), torch.randn(32, 4)
    task = Task(
        teacher,
        {"x": x[:2]},
        [({"x": x}, None)],
        [({"x": x}, x.argmax(1))],
        metric=lambda out, y: (out["logits"].argmax(1) == y).double(),
    )
    config = Distill(hard_weight=0.0, training=Training(effort=Effort(100), learning_rate=0.5, weight_decay=0))
    found = distill_model(student, task, config)
    for key in ("a", "b"):
        before, after = (
            (model.get_submodule(key)(x).softmax(1) - teacher.get_submodule(key)(x).softmax(1)).norm()
            for model in (student, found)
        )
        assert after < 0.2 * before, key


def test_outputs_that_differ_in_number_are_an_error(small_resnet: nn.Module) -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), x.flatten(1)

    with pytest.raises(TaskError, match="2 and 1 floating-point tensors"):
        distill_model(small_resnet, make_task(small_resnet), SHORT, teacher=Both())


def test_progress_is_that_of_the_distillation(small_resnet: nn.Module) -> None:
    seen: list[tuple[str, float]] = []
    distill_model(small_resnet, make_task(small_resnet), SHORT, progress=lambda *point: seen.append(point))
    assert seen[-1] == ("distill", 1.0)


@pytest.mark.parametrize("config", [SHORT, dataclasses.replace(SHORT, reconstruct=True)], ids=["recalibrated", "reconstructed"])
def test_protected_modules_keep_weights_and_statistics(small_resnet: nn.Module, config: Distill) -> None:
    task = make_task(small_resnet, protect=("stem", "head"))
    student = perturbed(small_resnet)
    before, after = state(student), state(distill_model(student, task, config))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith(("stem.", "head.")) for name in changed)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        ((torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long)), r"\(8, 3, 8, 8\).*RuntimeError"),
        ((torch.randn(8, 1, 8, 8), torch.zeros(7, dtype=torch.long)), r"\(8, 1, 8, 8\), \(7,\).*ValueError"),
        ((torch.randn(8, 1, 8, 8), torch.full((8,), 10)), r"\(8, 1, 8, 8\), \(8,\).*IndexError"),
    ],
    ids=["inputs", "length of the target", "class out of range"],
)
def test_a_later_batch_that_does_not_fit_is_an_error_that_shows_it(small_resnet: nn.Module, batch: object, shown: str) -> None:
    task = Task(small_resnet, (X,), [(X, Y), batch], [(X, Y)])
    config = Distill(recalibrate=False, training=Training(effort=Effort(2, "steps")))
    with pytest.raises(BatchError, match=rf"every batch of train must fit.*{shown}.*differs from example_inputs"):
        distill_model(small_resnet, task, config)
