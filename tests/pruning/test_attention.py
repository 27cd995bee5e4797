"""Channel attention: what the gates learn, the copy, seeds, errors."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from paredown.core.effort import Effort
from paredown.core.errors import NotTrainableError, TrainingDivergedError
from paredown.core.steps import ChannelAttention, Gate, Prune, Training, Widths
from paredown.graph.groups import dependency_groups
from paredown.graph.manifest import Manifest, manifest_of
from paredown.measure.cost import count_macs
from paredown.pruning.attention import channel_attention, shares_of
from paredown.pruning.closing import Goal
from paredown.pruning.prune import prune_model
from paredown.task.task import Task
from tests.conftest import SmallResNet, make_small_resnet

BOTH: tuple[Gate, ...] = ("static", "squeeze_excite")


def config(gate: Gate = "static", steps: int = 12, **more: Any) -> ChannelAttention:
    training = Training(effort=Effort(steps, "steps"), channels_last=False)
    return ChannelAttention(gate=gate, penalty=more.pop("penalty", 1.0), training=training, **more)


@pytest.mark.parametrize("gate", BOTH)
def test_a_channel_that_nothing_depends_on_gets_the_lowest_gate(pattern_task: Task, gate: Gate) -> None:
    model = pattern_task.model
    with torch.no_grad():
        model.get_parameter("block1.conv2.weight")[:, 5] = 0
    groups = dependency_groups(model, pattern_task.inputs)
    found = channel_attention(model, pattern_task, groups, config(gate, 30))
    inner = next(g for g, group in enumerate(groups.groups) if group.name == "block1.conv1")
    assert int(found.scores[inner].argmin()) == 5
    assert found.scores[inner][5] < 0.8 * np.median(found.scores[inner])


def test_static_gates_fold_without_loss_and_others_report_theirs(pattern_task: Task) -> None:
    groups = dependency_groups(pattern_task.model, pattern_task.inputs)
    static, dynamic = (channel_attention(pattern_task.model, pattern_task, groups, config(gate)) for gate in BOTH)
    assert static.after == pytest.approx(static.before, rel=1e-5)
    assert dynamic.after != dynamic.before and dynamic.after == pytest.approx(dynamic.before, rel=0.5)


@pytest.mark.parametrize("gate", BOTH)
def test_the_model_is_untouched_and_the_copy_is_of_its_class(pattern_task: Task, gate: Gate) -> None:
    model = pattern_task.model
    before = copy.deepcopy(model.state_dict())
    groups = dependency_groups(model, pattern_task.inputs)
    found = channel_attention(model, pattern_task, groups, config(gate, 3))
    assert type(found.model) is SmallResNet and list(found.model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for m in (model, found.model) for module in m.modules())
    assert [len(s) for s in found.scores] == [group.size for group in groups.groups]


@pytest.mark.parametrize("gate", BOTH)
def test_one_seed_gives_one_result(pattern_task: Task, gate: Gate) -> None:
    groups = dependency_groups(pattern_task.model, pattern_task.inputs)
    first, second = (channel_attention(pattern_task.model, pattern_task, groups, config(gate, 3), seed=4) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.scores, second.scores, strict=True))


def test_labels_are_not_needed(pattern_task: Task) -> None:
    """Without them the gated model stays near the original's output."""
    train = [(x, None) for x, _ in pattern_task.train]
    task = Task(pattern_task.model, pattern_task.example_inputs, train, pattern_task.validation)
    found = channel_attention(task.model, task, dependency_groups(task.model, task.inputs), config(steps=5, penalty=0.1))
    assert found.before < 0.5  # of the mean square of the output itself


def test_the_users_training_step_runs_on_the_users_class(pattern_task: Task) -> None:
    classes = set()

    def step(model: nn.Module, batch: Any) -> Tensor:
        classes.add(type(model))
        return F.cross_entropy(model(batch[0]), batch[1])

    task = Task(pattern_task.model, pattern_task.example_inputs, pattern_task.train, pattern_task.validation, train_step=step)
    channel_attention(task.model, task, dependency_groups(task.model, task.inputs), config("squeeze_excite", 2))
    assert classes == {SmallResNet}


def test_an_objective_of_the_callers_own_replaces_the_loss(pattern_task: Task) -> None:
    called: list[int] = []

    def objective(model: nn.Module, batch: Any) -> Tensor:
        called.append(1)
        return model(batch[0]).square().mean()

    groups = dependency_groups(pattern_task.model, pattern_task.inputs)
    goal = Goal(0.5, lambda _model, gates: [gate >= np.median(gate) for gate in gates], objective)
    channel_attention(pattern_task.model, pattern_task, groups, config(steps=2, penalty=None), goal=goal)
    assert len(called) >= 2 + 2 * len(list(pattern_task.train))


def test_shares_of_macs_sum_to_one_and_are_larger_where_a_channel_costs_more(pattern_task: Task) -> None:
    groups = dependency_groups(pattern_task.model, pattern_task.inputs)
    shares = shares_of(groups)
    assert sum(float(s.sum()) for s in shares) == pytest.approx(1)
    by_name = {group.name: float(s[0]) for group, s in zip(groups.groups, shares, strict=True)}
    assert by_name["stem.0"] > by_name["block1.conv1"]  # the stream is read and written by more convolutions


@pytest.mark.parametrize("gate", BOTH)
def test_pruning_by_channel_attention_meets_its_goal(pattern_task: Task, tmp_path: Path, gate: Gate) -> None:
    said: list[str] = []
    pruned = prune_model(
        pattern_task.model,
        pattern_task,
        Prune(ratio=0.5, importance=config(gate, 4), widths=Widths(round_to=2)),
        progress=lambda label, _: said.append(label),
    )
    assert isinstance(pruned, SmallResNet)
    x = pattern_task.inputs
    assert 0.4 < count_macs(pruned, x) / count_macs(pattern_task.model, x) <= 0.5
    assert any(label.startswith("gates folded, loss ") for label in said)
    manifest = manifest_of(pruned)
    assert manifest is not None
    ((before, after),) = manifest.folds
    assert before == pytest.approx(after, rel=1e-5 if gate == "static" else 0.1) and before > 0
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    paredown.save_checkpoint(pruned, tmp_path / "kept")
    assert manifest_of(paredown.load_checkpoint(tmp_path / "kept", make_small_resnet(16))) == manifest
    again = manifest_of(prune_model(pruned, pattern_task, Prune(ratio=0.3, widths=Widths(round_to=2))))
    assert again is not None and again.folds == manifest.folds


def test_pruning_by_a_threshold_removes_the_gates_below_it(pattern_task: Task) -> None:
    pruned = prune_model(
        pattern_task.model,
        pattern_task,
        Prune(threshold=0.9, importance=config(steps=15, penalty=3.0), widths=Widths(round_to=1)),
    )
    assert count_macs(pruned, pattern_task.inputs) < count_macs(pattern_task.model, pattern_task.inputs)


def test_a_frozen_model_and_a_diverging_training_are_typed_errors(pattern_task: Task) -> None:
    model = pattern_task.model
    groups = dependency_groups(model, pattern_task.inputs)
    wild = ChannelAttention(training=Training(effort=Effort(20, "steps"), learning_rate=1e30, clip=None))
    with pytest.raises(TrainingDivergedError, match="learning_rate"):
        channel_attention(model, pattern_task, groups, wild)
    with pytest.raises(NotTrainableError, match="requires_grad_"):
        channel_attention(model.requires_grad_(False), pattern_task, groups, config())
