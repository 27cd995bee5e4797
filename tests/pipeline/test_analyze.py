"""What `analyze` finds of a task, with and without sensitivity."""

import copy
import dataclasses
from types import ModuleType

import pytest
import torch
from torch import nn

import paredown
from paredown import Target, Task
from paredown.core.errors import NotTrainableError
from paredown.core.report import Profile

TARGET = Target("onnxruntime", batch=4, threads=1)


class Unread:
    """A split that nobody may read, beyond the first batch that Task checks."""

    def __init__(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.batches, self.read = batches, 0

    def __iter__(self):  # type: ignore[no-untyped-def]  # of batches
        for batch in self.batches:
            self.read += 1
            yield batch


def test_sensitivity_is_left_out_unless_asked_for(pattern_task: Task) -> None:
    assert paredown.analyze(pattern_task, TARGET).sensitivity == ()


def test_sensitivity_has_a_curve_for_each_group_and_layer_by_name_and_round_trips(pattern_task: Task) -> None:
    seen: list[tuple[str, float]] = []
    before = copy.deepcopy(pattern_task.model.state_dict())
    profile = paredown.analyze(pattern_task, TARGET, sensitivity=True, progress=lambda *what: seen.append(what))
    modules = {name for name, _ in pattern_task.model.named_modules()}
    channels, weights = ([c for c in profile.sensitivity if c.masked == what] for what in ("channels", "weights"))
    assert [(c.group, c.size) for c in channels] == [(g.name, g.size) for g in profile.groups]
    layers = {n: m.weight.numel() for n, m in pattern_task.model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {c.group: c.size for c in weights} == layers
    assert all(curve.group in modules and curve.samples == 256 for curve in profile.sensitivity)
    assert max(max(curve.drops) for curve in profile.sensitivity) > 0.1
    assert seen[0] == ("sensitivity to masked channels", 0.0) and seen[-1] == ("sensitivity to masked weights", 1.0)
    assert Profile.from_json(profile.to_json()) == profile
    assert all(torch.equal(value, before[name]) for name, value in pattern_task.model.state_dict().items())


def test_sensitivity_never_reads_the_test_split(pattern_task: Task) -> None:
    unread = Unread(list(pattern_task.test or ()))
    task = dataclasses.replace(pattern_task, test=unread)
    checked = unread.read
    paredown.analyze(task, TARGET, sensitivity=True)
    assert unread.read == checked


def test_sensitivity_of_a_model_without_groups_and_layers_is_empty(pattern_task: Task) -> None:
    names = tuple(name for name, _ in pattern_task.model.named_children())
    profile = paredown.analyze(dataclasses.replace(pattern_task, protect=names), TARGET, sensitivity=True)
    assert profile.groups == profile.sensitivity == ()
    assert "no channel of this model can be pruned" in profile.warnings[-1]


def test_sensitivity_of_a_frozen_model_is_an_error_with_its_remedy(pattern_task: Task) -> None:
    pattern_task.model.requires_grad_(False)
    with pytest.raises(NotTrainableError, match=r"requires_grad_\(True\)"):
        paredown.analyze(pattern_task, TARGET, sensitivity=True)


@pytest.mark.slow
def test_sensitivity_of_the_published_resnet20(shared_data: ModuleType) -> None:
    """Its first convolution feeds the whole first stage, which has few channels: nothing is more sensitive."""
    images, labels, _ = shared_data.cifar10("validation", 300)
    batches = [(shared_data.normalize(images), torch.as_tensor(labels))]
    task = Task(shared_data.cifar_resnet(20), (batches[0][0][:2],), batches, batches, loss=nn.functional.cross_entropy)
    profile = paredown.analyze(task, TARGET, sensitivity=True)
    groups = [curve for curve in profile.sensitivity if curve.masked == "channels"]
    worst = max(groups, key=lambda curve: sum(curve.loss))
    assert len(groups) == 10 and len(profile.sensitivity) == 30 and worst.group == "conv1"
    assert all(curve.metric[0] > 0.88 and curve.drops[-1] >= curve.drops[1] for curve in profile.sensitivity)
