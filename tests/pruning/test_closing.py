"""Gates that close towards a goal: what they cost, how scores pull, and that the cut removes nothing but zeros."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown.core.effort import Effort
from paredown.core.errors import NothingToPruneError
from paredown.core.steps import ChannelAttention, Gate, Prune, Training, Widths
from paredown.graph.groups import Groups, dependency_groups
from paredown.graph.manifest import manifest_of
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs
from paredown.pruning.attention import channel_attention
from paredown.pruning.closing import Goal, SoftMacs, hard_gates, soft_gates, target_at
from paredown.pruning.prune import Part, closes, prune_model
from paredown.task.task import Task
from tests.conftest import make_small_resnet
from tests.graph import nets

BOTH: tuple[Gate, ...] = ("static", "squeeze_excite")


def small() -> tuple[nn.Module, Tensor]:
    return make_small_resnet(), torch.randn(2, 1, 8, 8)


def attention(gate: Gate = "static", steps: int = 12, penalty: float | None = None) -> ChannelAttention:
    return ChannelAttention(gate=gate, penalty=penalty, training=Training(effort=Effort(steps, "steps"), channels_last=False))


def measured(make: Any) -> tuple[Groups, SoftMacs, float, Tensor]:
    """Groups, their soft MACs, the MACs that groups don't reach, and random scores."""
    torch.manual_seed(0)
    model, x = make()
    groups, whole = dependency_groups(model, x), count_macs(model, x)
    scores = torch.randn(sum(group.size for group in groups.groups), dtype=torch.float64)
    return groups, SoftMacs(groups, whole), whole - groups.macs(groups.all_kept()), scores


@pytest.mark.parametrize("make", [small, *(nets.PRUNABLE[n] for n in ("flattened", "dense", "gated", "grouped", "tied_head"))])
def test_soft_macs_of_gates_at_0_and_1_are_those_of_the_cut(make: Any) -> None:
    groups, macs, other, scores = measured(make)
    keep = [each.numpy() > 0 for each in scores.split([group.size for group in groups.groups])]
    whole = other + groups.macs(groups.all_kept())
    assert float(macs(torch.ones_like(scores))) == pytest.approx(1)
    assert float(macs((scores > 0).double())) == pytest.approx((other + groups.macs(keep)) / whole)


def test_nothing_is_closed_where_all_macs_are_left() -> None:
    """Although scores are all equal at first, and the sum of all parts may be a little more than 1."""
    for width in range(4, 24):
        model, x = (
            nn.Sequential(nn.Linear(width, 7), nn.ReLU(), nn.Linear(7, width + 1), nn.ReLU(), nn.Linear(width + 1, 3)),
            torch.randn(2, width),
        )
        groups, whole = dependency_groups(model, x), count_macs(model, x)
        scores = torch.full((sum(group.size for group in groups.groups),), 2.0, dtype=torch.float64)
        assert hard_gates(scores, SoftMacs(groups, whole * (1 - 1e-15)), 1.0, torch.tensor([0])).min() == 1


def test_gates_stand_at_the_cost_that_is_asked_and_hard_ones_just_under_it() -> None:
    _, macs, _, scores = measured(small)
    soft = soft_gates(scores, macs, 0.6, 0.5)
    assert float(macs(soft)) == pytest.approx(0.6, abs=1e-9)
    hard = hard_gates(scores, macs, 0.6, scores.argmax()[None])
    assert 0.5 < float(macs(hard)) <= 0.6
    assert sorted(hard.tolist()) == hard[scores.argsort()].tolist()  # those with the lowest scores are closed
    assert hard_gates(scores, macs, 1.0, scores.argmax()[None]).min() == 1
    kept = hard_gates(scores, macs, 0.0, torch.tensor([2, 5]))
    assert kept.nonzero().flatten().tolist() == [2, 5]  # whatever it costs


def test_whatever_scores_do_the_cost_stays() -> None:
    """To first order, in every direction: so one gate opens only as far as others close."""
    _, macs, _, scores = measured(small)
    scores.requires_grad_(True)
    gates = soft_gates(scores, macs, 0.6, 0.7)
    (pull,) = torch.autograd.grad(macs(gates), scores, retain_graph=True)
    assert float(pull.abs().max()) < 1e-12
    (moved,) = torch.autograd.grad(gates[0], scores)
    assert moved[0] > 0.01 and moved[1:].max() <= 0


@pytest.mark.parametrize("gate", BOTH)
def test_what_is_cut_is_zero_by_then(pattern_task: Task, gate: Gate) -> None:
    """The cut model is the trained one: nothing is lost by the cut."""
    model, x = pattern_task.model, pattern_task.inputs
    groups = dependency_groups(model, x)
    asked: list[list[Any]] = []

    def choose(trained: nn.Module, scores: Any) -> list[Any]:
        asked.append([trained, scores])
        return [score >= np.median(score) for score in scores]

    found = channel_attention(model, pattern_task, groups, attention(gate), goal=Goal(0.4, choose))
    assert len(asked) == 1 and type(asked[0][0]) is type(model)
    assert found.keep is not None
    assert [keep.tolist() for keep in found.keep] == [(score >= np.median(score)).tolist() for score in found.scores]
    pruned = cut(found.model, groups.manifest(found.keep))
    batch = pattern_task.train[0][0]
    with torch.no_grad():
        assert torch.allclose(pruned.eval()(batch), found.model(batch), atol=1e-5)


@pytest.mark.parametrize("gate", BOTH)
def test_pruning_closes_gates_to_its_goal_and_recovers_on_the_way(pattern_task: Task, gate: Gate) -> None:
    config = Prune(ratio=0.6, importance=attention(gate, 60), widths=Widths(round_to=1))
    assert closes(config)
    pruned = paredown.prune(pattern_task, config)
    x = pattern_task.inputs
    assert 0.3 < count_macs(pruned, x) / count_macs(pattern_task.model, x) <= 0.4
    at_once = paredown.prune(pattern_task, Prune(ratio=0.6, importance="l1", widths=Widths(round_to=1)))
    assert error(pruned, pattern_task) < error(at_once, pattern_task)


def error(model: nn.Module, task: Task) -> float:
    with torch.no_grad():
        return float(torch.stack([nn.functional.cross_entropy(model(x), y) for x, y in task.validation]).mean())


def test_gates_close_to_a_goal_of_latency_too(pattern_task: Task) -> None:
    x = pattern_task.inputs

    def latency(model: nn.Module) -> float:
        assert not any(module.training for module in model.modules())
        return float(count_macs(model, x))

    pruned = prune_model(
        pattern_task.model,
        pattern_task,
        Prune(latency="0.5x", importance=attention(), widths=Widths(round_to=1)),
        latency=latency,
    )
    assert count_macs(pruned, x) / count_macs(pattern_task.model, x) <= 0.5


def test_a_goal_out_of_reach_is_told_before_anything_is_trained(pattern_task: Task) -> None:
    def step(*_: Any) -> Tensor:
        raise AssertionError("trained")

    task = Task(pattern_task.model, pattern_task.example_inputs, pattern_task.train, pattern_task.validation, train_step=step)
    floor = Widths(floor=0.9)
    with pytest.raises(NothingToPruneError, match="reachable"):
        prune_model(task.model, task, Prune(ratio=0.9, importance=attention(), widths=floor))
    by_latency = Prune(latency="0.1x", importance=attention(), widths=floor)
    with pytest.raises(NothingToPruneError, match="reachable"):
        prune_model(task.model, task, by_latency, latency=lambda model: float(count_macs(model, task.inputs)))


@pytest.mark.parametrize(
    "config",
    [
        Prune(threshold=0.5, importance=ChannelAttention()),
        Prune(ratio=0.3, scope="depth", importance=ChannelAttention()),
        Prune(ratio=0.3, importance=attention(penalty=0.3)),
        Prune(ratio=0.3, importance="l1"),
    ],
)
def test_gates_stay_soft_without_a_goal_that_they_can_close_to(config: Prune) -> None:
    assert not closes(config)


def test_the_target_falls_from_all_to_the_goal_in_half_of_the_time() -> None:
    targets = [target_at(fraction, 0.3) for fraction in np.linspace(0, 1, 21)]
    assert targets[:3] == [1, 1, 1] and targets[10:] == pytest.approx([0.3] * 11)
    assert all(after <= before for before, after in itertools.pairwise(targets))


def test_a_schedule_closes_gates_part_by_part(pattern_task: Task) -> None:
    schedule = paredown.Schedule(steps=2, between=Effort(2, "steps"))
    config = Prune(ratio=0.5, importance=attention(steps=6), widths=Widths(round_to=1), schedule=schedule)
    pruned = paredown.prune(pattern_task, config)
    x = pattern_task.inputs
    assert 0.35 < count_macs(pruned, x) / count_macs(pattern_task.model, x) <= 0.5
    assert manifest_of(pruned) is not None


@contextmanager
def killed_before_gates_are_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(paredown.pruning.attention, "_read", killed)
        yield


@pytest.mark.parametrize("gate", BOTH)
def test_a_training_that_had_ended_when_it_was_killed_keeps_its_choice(
    pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    config = Prune(ratio=0.5, importance=attention(gate), widths=Widths(round_to=1))
    whole = paredown.prune(pattern_task, config)
    with killed_before_gates_are_read(monkeypatch):
        paredown.prune(pattern_task, config, resume=tmp_path / "run")
    resumed = paredown.prune(pattern_task, config, resume=tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


@pytest.mark.parametrize("penalty", [None, 1.0])
def test_saving_changes_nothing(pattern_task: Task, tmp_path: Path, penalty: float | None) -> None:
    config = Prune(ratio=0.5, importance=attention(steps=5, penalty=penalty), widths=Widths(round_to=1))
    plain = paredown.prune(pattern_task, config)
    saved = paredown.prune(pattern_task, config, resume=paredown.Resume(tmp_path / "run", steps=1))
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), saved.state_dict().values(), strict=True))


def test_a_training_step_may_run_the_model_on_other_samples(pattern_task: Task) -> None:
    """Each call has the gates of its own samples."""

    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x[:5]), y[:5]) + nn.functional.cross_entropy(
            model(torch.cat([x, x])), torch.cat([y, y])
        )

    task = Task(pattern_task.model, pattern_task.example_inputs, pattern_task.train, pattern_task.validation, train_step=step)
    pruned = paredown.prune(task, Prune(ratio=0.5, importance=attention("squeeze_excite", 4), widths=Widths(round_to=1)))
    assert count_macs(pruned, task.inputs) <= 0.5 * count_macs(task.model, task.inputs)


class WithLoss(nn.Module):
    """Gives a number beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make_small_resnet()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"logits": logits, "aux": logits.square().mean()}


class OwnTask(Task):
    """Made in a way of its own."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        def loss(output: Any, target: Tensor) -> Tensor:
            return nn.functional.cross_entropy(output["logits"], target) + 0 * output["aux"]

        def metric(output: Any, target: Tensor) -> Tensor:
            return (output["logits"].argmax(1) == target).float()

        super().__init__(model, task.example_inputs, task.train, task.validation, loss=loss, metric=metric)


def test_a_number_beside_the_outputs_is_not_distilled_and_a_task_of_another_class_serves(pattern_task: Task) -> None:
    task = OwnTask(WithLoss(), pattern_task)
    pruned = paredown.prune(task, Prune(ratio=0.5, importance=attention(steps=4), widths=Widths(round_to=1)))
    assert count_macs(pruned, task.inputs) <= 0.5 * count_macs(task.model, task.inputs)


def test_a_cut_of_a_schedule_that_has_nothing_left_to_do_trains_nothing(pattern_task: Task) -> None:
    """Widths in steps of 8 make the first cut go too far for the second to remove anything."""
    config = Prune(ratio=0.2, importance=attention(steps=4), widths=Widths(round_to=8))
    first = prune_model(pattern_task.model, pattern_task, config, part=Part(0.5, pattern_task.model))
    already = 1 - count_macs(first, pattern_task.inputs) / count_macs(pattern_task.model, pattern_task.inputs)
    again = prune_model(first, pattern_task, config, part=Part(already * 0.99 / 0.2, pattern_task.model))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_latency_that_was_measured_anew_is_the_same_goal(
    pattern_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A goal for int8 files is written in ms by each process that works on it."""

    def run(ms: float) -> nn.Module:
        config = Prune(latency=f"{ms:.6g} ms", importance=attention(steps=4), widths=Widths(round_to=1))
        part = Part(resume=paredown.Resume(tmp_path / "run", steps=1))
        return prune_model(pattern_task.model, pattern_task, config, latency=latency, part=part)

    def latency(model: nn.Module) -> float:
        return count_macs(model, pattern_task.inputs) / 1e6

    whole = latency(pattern_task.model)
    with killed_before_gates_are_read(monkeypatch):
        run(0.5 * whole)
    assert latency(run(0.501 * whole)) <= 0.501 * whole
