"""Network Slimming: the penalty drives scales down, and the trained copy is what is cut."""

import pytest
import torch
from torch import nn

from paredown.core.effort import Effort
from paredown.core.errors import NotTrainableError, RecipeError
from paredown.core.steps import Prune, Slimming, Training, Widths
from paredown.graph.groups import dependency_groups
from paredown.measure.cost import count_macs
from paredown.pruning.prune import prune_model
from paredown.pruning.slimming import l1_norm, slim
from paredown.task.task import Task
from tests.conftest import SmallResNet

TRAINING = Training(effort=Effort(20, "steps"), learning_rate=0.05)


def scales(model: nn.Module) -> torch.Tensor:
    return torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])


def test_l1_norm_is_the_sum_of_absolute_values() -> None:
    assert float(l1_norm([torch.tensor([-1.0, 2.0]), torch.tensor([3.0])])) == 6.0


def test_a_larger_penalty_gives_smaller_scales_and_the_model_is_untouched(pattern_task: Task) -> None:
    model = pattern_task.model
    before, groups = scales(model).clone(), dependency_groups(model, pattern_task.inputs)
    gentle, hard = (slim(model, pattern_task, groups, Slimming(penalty=p, training=TRAINING)) for p in (0.0, 0.1))
    assert float(scales(hard).abs().mean()) < 0.9 * float(scales(gentle).abs().mean())
    assert torch.equal(scales(model), before) and not hard.training


def test_the_trained_copy_is_what_is_cut(pattern_task: Task) -> None:
    config = Prune(ratio=0.4, importance=Slimming(penalty=0.1, training=TRAINING), widths=Widths(round_to=1))
    model = pattern_task.model
    before = scales(model).clone()
    first, second = (prune_model(model, pattern_task, config, seed=1) for _ in range(2))
    assert isinstance(first, SmallResNet)
    assert count_macs(first, pattern_task.inputs) <= 0.6 * count_macs(model, pattern_task.inputs)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not set(scales(first).tolist()) <= set(before.tolist())  # values of the training, not of the original
    assert torch.equal(scales(model), before)


def test_a_net_without_batch_norms_is_an_error_with_its_remedy() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x, y = torch.randn(8, 8), torch.zeros(8, dtype=torch.long)
    task = Task(model, (x,), [(x, y)], [(x, y)])
    with pytest.raises(RecipeError, match=r"Slimming needs batch norms.*taylor"):
        prune_model(model, task, Prune(ratio=0.3, importance=Slimming()))


def test_frozen_scales_are_an_error_with_its_remedy(pattern_task: Task) -> None:
    model = pattern_task.model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    groups = dependency_groups(model, pattern_task.inputs)
    with pytest.raises(NotTrainableError, match=r"trains the scales.*requires_grad_"):
        slim(model, pattern_task, groups, Slimming())
