"""Transformers and recurrent nets pruned to half of their MACs by the usual selection."""

from typing import Any

import pytest
import torch
from torch import nn

from paredown.core.steps import Prune, Widths
from paredown.graph.groups import dependency_groups
from paredown.graph.units import Units
from paredown.measure.cost import count_macs
from paredown.pruning.prune import prune_model
from paredown.task.batches import batch_size
from paredown.task.task import Task
from tests.graph import attention_nets as nets


def task_of(model: nn.Module, inputs: Any) -> Task:
    inputs = inputs if isinstance(inputs, dict | tuple) else (inputs,)
    target = torch.zeros(batch_size(inputs), dtype=torch.long)
    return Task(model, inputs, [(inputs, None)] * 2, [(inputs, target)], metric=lambda output, target: torch.ones(len(target)))


def check_half(model: nn.Module, inputs: Any) -> None:
    task = task_of(model, inputs)
    pruned = prune_model(model, task, Prune(macs="0.5x", widths=Widths(round_to=1)))
    assert type(pruned) is type(model)
    assert 0.35 < count_macs(pruned, task.inputs) / count_macs(model, task.inputs) <= 0.5


@pytest.mark.parametrize("name", ["fused", "width_of_heads", "grouped_queries"])
def test_self_made_transformers_lose_half_of_their_macs(name: str) -> None:
    torch.manual_seed(0)
    check_half(*getattr(nets, name)())


def test_a_recurrent_classifier_loses_half_of_its_macs() -> None:
    torch.manual_seed(0)
    check_half(*nets.recurrent("LSTM", num_layers=2))


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("vit", "swin", "bert", "llama")), "gpt2"]
)
def test_classes_that_others_wrote_lose_half_of_their_macs(name: str) -> None:
    check_half(*nets.real(name))


def test_a_unit_of_groups_of_different_size_takes_the_same_fraction_of_each() -> None:
    torch.manual_seed(0)
    model, x = nets.width_of_heads()
    groups = dependency_groups(model, x)
    scores = [torch.rand(group.size, dtype=torch.float64).numpy() for group in groups.groups]
    units = Units(groups, scores)
    assert len(units.scores[0]) == 8 and units.positions[0] == 3  # of the stream
    keep = units.spread(units.best([3, *(len(s) for s in units.scores[1:])]))
    for g in groups.coupled[0]:
        size = groups.groups[g].size
        assert keep[g].sum() == 3 * size // 8
        assert scores[g][keep[g]].min() > scores[g][~keep[g]].max()
