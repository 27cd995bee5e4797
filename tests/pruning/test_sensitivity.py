"""Sensitivity curves: what is measured, what is estimated, channels and single weights."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import NotFiniteError, NothingToPruneError, RecipeError
from paredown.graph import equality
from paredown.graph.groups import Groups, dependency_groups
from paredown.measure.quality import score
from paredown.pruning.scores import scores
from paredown.pruning.sensitivity import sensitivity_curves, weight_sensitivity, weight_sensitivity_curves
from paredown.pruning.sparsity.layers import sparse_layers
from paredown.task.batches import call
from paredown.task.task import Task


def groups_of(task: Task) -> Groups:
    return dependency_groups(task.model, task.inputs)


def test_measured_points_are_those_of_the_masked_model(pattern_task: Task) -> None:
    groups = groups_of(pattern_task)
    curves = sensitivity_curves(pattern_task.model, pattern_task, groups, ratios=(0.25, 0.75), samples=10_000)
    assert [curve.group for curve in curves] == [group.name for group in groups.groups]
    found = scores(pattern_task.model, pattern_task, groups, "taylor")
    keep = groups.all_kept()
    keep[1] = np.argsort(np.argsort(found[1], kind="stable"), kind="stable") >= round(0.75 * len(found[1]))
    masked = equality.masked(pattern_task.model, groups.manifest(keep), groups.consumers)
    assert curves[1].metric[2] == score(lambda x: call(masked, x), pattern_task, "validation").value
    assert curves[1].metric[0] == score(lambda x: call(pattern_task.model, x), pattern_task, "validation").value
    assert curves[1].samples == 640
    assert curves[1].ratios == (0.0, 0.25, 0.75) and curves[1].size == groups.groups[1].size


def test_the_estimate_begins_at_the_loss_and_follows_it(pattern_task: Task) -> None:
    curves = sensitivity_curves(pattern_task.model, pattern_task, groups_of(pattern_task), ratios=(0.1, 0.3))
    assert all(curve.estimate[0] == curve.loss[0] for curve in curves)
    measured = np.concatenate([np.array(c.loss[1:]) - c.loss[0] for c in curves])
    estimated = np.concatenate([np.array(c.estimate[1:]) - c.loss[0] for c in curves])
    ranks = [np.argsort(np.argsort(v)) for v in (measured, estimated)]
    assert np.corrcoef(*ranks)[0, 1] > 0.5


def test_the_estimate_is_exact_for_a_loss_that_is_linear_in_the_gates() -> None:
    """For a linear model and a linear loss there is no second order; samples agree, so their spread adds nothing."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
    x, y = torch.ones(16, 3, dtype=torch.float64), torch.zeros(16)
    task = Task(model, (x,), [(x, y)], [(x, y)], loss=lambda o, t: o.mean(), metric=lambda o, t: o[:, 0])
    curve = sensitivity_curves(model, task, dependency_groups(model, x), ratios=(0.5,))[0]
    first = curve.loss[0] - curve.loss[1]  # the sum of the gates that were masked
    assert curve.estimate[1] - curve.loss[0] == pytest.approx(-first + 0.5 * first**2)


def test_losses_are_those_of_the_task_or_of_the_users_own_step(pattern_task: Task) -> None:
    doubled = dataclasses.replace(pattern_task, train_step=lambda m, b: 2 * nn.functional.cross_entropy(m(b[0]), b[1]))
    given = dataclasses.replace(pattern_task, loss=lambda o, t: 2 * nn.functional.cross_entropy(o, t))
    groups = groups_of(pattern_task)
    own, twice = (sensitivity_curves(t.model, t, groups, ratios=(0.5,), importance="l1", samples=100) for t in (doubled, given))
    x, y = (torch.cat(parts)[:100] for parts in zip(*pattern_task.validation, strict=True))
    with torch.no_grad():
        expected = 2 * float(nn.functional.cross_entropy(pattern_task.model(x), y))
    for one, other in zip(own, twice, strict=True):
        assert one.loss == pytest.approx(other.loss) and one.samples == 100
        assert one.loss[0] == pytest.approx(expected, rel=1e-5)


def test_a_step_that_takes_gradients_itself_is_measured(pattern_task: Task) -> None:
    def penalized(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return nn.functional.cross_entropy(model(x), batch[1]) + slope.square().mean()

    task = dataclasses.replace(pattern_task, train_step=penalized)
    plain, own = (weight_sensitivity_curves(t.model, t, ratios=(0.5,), samples=64) for t in (pattern_task, task))
    assert all(mine.loss[0] > theirs.loss[0] and math.isfinite(mine.loss[1]) for mine, theirs in zip(own, plain, strict=True))


def test_a_model_that_is_one_layer_has_a_curve_with_a_name() -> None:
    x = torch.randn(32, 6)
    task = Task(nn.Linear(6, 3).eval(), (x,), [(x, torch.zeros(32, dtype=torch.long))], [(x, torch.zeros(32, dtype=torch.long))])
    assert [curve.group for curve in weight_sensitivity_curves(task.model, task, ratios=(0.5,))] == ["the model"]


def test_curves_of_single_weights_cover_every_layer(pattern_task: Task) -> None:
    curves = weight_sensitivity_curves(pattern_task.model, pattern_task, ratios=(0.1, 0.9), samples=128)
    layers = sparse_layers(pattern_task.model)
    assert [curve.group for curve in curves] == [layer.name for layer in layers]
    assert [curve.size for curve in curves] == [layer.weight.numel() for layer in layers]
    assert np.mean([curve.loss[2] - curve.loss[0] for curve in curves]) > np.mean([c.loss[1] - c.loss[0] for c in curves])


def test_sensitivity_of_a_weight_that_nothing_reads_is_zero(pattern_task: Task) -> None:
    model = pattern_task.model
    with torch.no_grad():
        model.head.weight[:, 3] = 0  # type: ignore[index, union-attr]
    layers = sparse_layers(model)
    found = weight_sensitivity(model, pattern_task, layers)
    assert [s.shape for s in found] == [layer.weight.shape for layer in layers]
    head = found[[layer.name for layer in layers].index("head")]
    assert bool((head[:, 3] == 0).all()) and float(head.sum()) > 0


def test_the_model_is_untouched_and_one_seed_gives_one_result(pattern_task: Task) -> None:
    before = {name: value.clone() for name, value in pattern_task.model.state_dict().items()}
    groups = groups_of(pattern_task)
    first, second = (sensitivity_curves(pattern_task.model, pattern_task, groups, ratios=(0.5,), samples=64) for _ in range(2))
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in pattern_task.model.state_dict().items())


def test_a_metric_that_is_lower_better_turns_the_drop(pattern_task: Task) -> None:
    curve = sensitivity_curves(pattern_task.model, pattern_task, groups_of(pattern_task), ratios=(0.9,), samples=64)[0]
    assert curve.drops[1] == curve.metric[0] - curve.metric[1]
    assert dataclasses.replace(curve, higher_is_better=False).drops[1] == -curve.drops[1]


@pytest.mark.parametrize("ratios", [(), (0.0,), (0.5, 1.0), (-0.1,)])
def test_ratios_out_of_range_are_named(pattern_task: Task, ratios: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match=r"ratios must be fractions in \(0, 1\).*write ratios="):
        sensitivity_curves(pattern_task.model, pattern_task, groups_of(pattern_task), ratios=ratios)


def test_a_model_without_groups_is_an_error(pattern_task: Task) -> None:
    groups = groups_of(pattern_task)
    with pytest.raises(NothingToPruneError, match="sensitivity needs something to remove"):
        sensitivity_curves(pattern_task.model, pattern_task, groups.without(range(len(groups.groups))))


def test_a_loss_that_is_infinite_once_something_is_masked_is_an_error(pattern_task: Task) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        plain = nn.functional.cross_entropy(output, target)
        return plain if torch.is_grad_enabled() or plain < 0.2 else plain * math.inf

    task = dataclasses.replace(pattern_task, loss=loss)
    with pytest.raises(NotFiniteError, match=r"must be finite for sensitivity, got NaN or infinity with channels of"):
        sensitivity_curves(task.model, task, dependency_groups(task.model, task.inputs))
