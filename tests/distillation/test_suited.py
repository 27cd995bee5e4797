"""A recovery that nobody wrote fits the task's outputs and targets."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paredown.core.effort import Effort
from paredown.core.steps import Distill, Prune, Schedule, Training, Widths
from paredown.distillation.suited import recovering, settled, suited
from paredown.pipeline.schedule import prune_by_schedule
from paredown.pipeline.steps import distill, prune
from paredown.task.metric import Metric
from paredown.task.task import Task

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
LABELS, NUMBERS = torch.arange(16) % 3, X[:, :3].cos()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.value = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x).relu()
        return self.classes(y), self.value(y)


def task(model: nn.Module, target: Any, loss: Callable[[Any, Any], Tensor]) -> Task:
    error = Metric(
        lambda output, _: (output[0] if isinstance(output, tuple) else output).square().mean(1), higher_is_better=False
    )
    return Task(model, (X[:2],), train=[(X, target)], validation=[(X, LABELS)], loss=loss, metric=error)


def mlp(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


def first_head(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output[0], target)


CASES: dict[str, tuple[Task, Distill]] = {
    "labels": (task(mlp(3), LABELS, nn.functional.cross_entropy), Distill(soft="soft_labels")),
    "no labels": (task(mlp(3), None, nn.functional.cross_entropy), Distill(soft="soft_labels", hard_weight=0)),
    "labels with weights of samples": (
        task(mlp(3), (LABELS, torch.rand(16)), lambda o, t: nn.functional.cross_entropy(o, t[0])),
        Distill(soft="soft_labels"),
    ),
    "no boxes in the first batch": (
        task(mlp(3), {"boxes": torch.zeros(0, 4), "labels": LABELS}, lambda o, t: nn.functional.cross_entropy(o, t["labels"])),
        Distill(soft="soft_labels"),
    ),
    "shares of classes": (task(mlp(3), NUMBERS.softmax(1), nn.functional.cross_entropy), Distill(soft="soft_labels")),
    "numbers": (task(mlp(3), NUMBERS, nn.functional.mse_loss), Distill(soft="regression")),
    "one number": (task(mlp(1), NUMBERS[:, :1], nn.functional.mse_loss), Distill(soft="regression")),
    "logits beside a number": (task(TwoHeads(), LABELS, first_head), Distill(soft="regression")),
}


@pytest.mark.parametrize("name", [name for name in CASES if name != "no labels"])
def test_a_distillation_that_says_nothing_of_outputs_compares_what_they_are(name: str) -> None:
    given, expected = CASES[name]
    training = Training(effort=Effort(3, "steps"))
    auto, written = (distill(given, dataclasses.replace(c, training=training)) for c in (Distill(), expected))
    assert all(torch.equal(a, b) for a, b in zip(auto.parameters(), written.parameters(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_recovery_fits_the_outputs_and_targets_and_can_be_carried_out(name: str) -> None:
    given, expected = CASES[name]
    found = settled(suited(given), given, given.model)
    assert found == expected
    training = Training(effort=Effort(2, "steps"))
    trained = distill(given, Distill(soft=found.soft, hard_weight=found.hard_weight, training=training))
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), given.model.parameters(), strict=True))


def test_schedule_of_cuts_recovers_a_regression_between_them() -> None:
    given, _ = CASES["one number"]
    config = Prune(ratio=0.5, schedule=Schedule(steps=2, between=Effort(1, "steps")), widths=Widths(round_to=1))
    pruned = prune_by_schedule(given, config, given.model, None)
    assert pruned.get_submodule("0").out_features <= 4  # type: ignore[operator]  # torch types attributes as modules


def test_a_convnet_is_recovered_by_outputs_and_hidden_layers_together(pattern_task: Task) -> None:
    found = recovering(pattern_task)
    assert found == Distill.combined() and found.balance and len(found.features) == 2
    unlabelled = dataclasses.replace(pattern_task, train=[(x, None) for x, _ in pattern_task.train])
    assert recovering(unlabelled) == dataclasses.replace(Distill.combined(), hard_weight=0)
    student = prune(pattern_task, Prune(ratio=0.5, importance="magnitude", widths=Widths(round_to=4)))
    trained = distill(pattern_task, dataclasses.replace(found, training=Training(effort=Effort(6, "steps"))), model=student)
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), trained.parameters(), strict=True))


def test_other_models_are_recovered_by_their_outputs(pattern_task: Task) -> None:
    for given, _ in CASES.values():
        assert recovering(given) == suited(given)
    assert recovering(dataclasses.replace(pattern_task, recover=lambda model: model)) == suited(pattern_task)
