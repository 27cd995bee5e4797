"""Every criterion on a model: planted importances, seeds, goals; a callable of the user's own; what a criterion needs."""

import functools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import BatchError, NotFiniteError, RecipeError
from paredown.core.steps import ChannelAttention, Criterion, Prune, Widths
from paredown.graph.groups import Groups, dependency_groups
from paredown.graph.manifest import manifest_of
from paredown.measure.cost import count_macs
from paredown.pruning.importance.activation import activation
from paredown.pruning.importance.activations import channel_means
from paredown.pruning.importance.gradients import curvatures, gate_gradients, pieces, task_loss
from paredown.pruning.prune import prune_model
from paredown.pruning.scores import scores
from paredown.task.task import Task
from tests.conftest import SmallResNet, make_small_resnet
from tests.graph import nets

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
LOSS = {"taylor_loss", "taylor_second", "gradient_loss", "fisher", "obd", "obs"}
DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(24, 1, 8, 8, generator=DRAW), torch.randint(0, 10, (24,), generator=DRAW)
DEAD = {0, 3, 5}  # channels of block1.conv1 that nothing depends on


def task_of(model: nn.Module, *, target: bool = True, **more: Any) -> Task:
    return Task(model, (X[:4],), [(X, Y if target else None)] * 2, [(X, Y)], **more)


@functools.cache
def planted() -> tuple[SmallResNet, Groups]:
    """A net in which some channels of one group are dead in every way: made of nothing, never active, read by nothing."""
    model, dead = make_small_resnet(), sorted(DEAD)
    with torch.no_grad():
        model.block1.conv1.weight[dead] *= 1e-4
        model.block1.bn1.weight[dead] = 1e-5
        model.block1.bn1.bias[dead] = -1.0
        model.block1.conv2.weight[:, dead] *= 1e-4
    return model, dependency_groups(model, X[:4])


def number_of(groups: Groups, name: str) -> int:
    return next(i for i, group in enumerate(groups.groups) if group.slices[0].tensor.startswith(name))


@pytest.mark.parametrize("importance", [name for name in CRITERIA if name != "random"])
def test_planted_channels_are_the_least_important(importance: Criterion) -> None:
    model, groups = planted()
    found = scores(model, task_of(model), groups, importance)
    assert [len(s) for s in found] == [group.size for group in groups.groups]
    assert all(np.isfinite(s).all() and (s >= 0).all() for s in found)
    mine = found[number_of(groups, "block1.conv1")]
    assert set(np.argsort(mine, kind="stable")[: len(DEAD)].tolist()) == DEAD
    living = [s[i] for s in found for i in range(len(s)) if s is not mine or i not in DEAD]
    assert max(mine[sorted(DEAD)]) <= np.median(living)  # between groups too


def test_random_does_not_find_them() -> None:
    model, groups = planted()
    lowest = [
        set(np.argsort(scores(model, task_of(model), groups, "random", seed=seed)[number_of(groups, "block1.conv1")])[:3])
        for seed in range(5)
    ]
    assert any(found != DEAD for found in lowest)


@pytest.mark.parametrize("importance", CRITERIA)
def test_one_seed_gives_the_same_indices_and_the_model_stays_as_it_was(importance: Criterion) -> None:
    model = make_small_resnet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = Prune(ratio=0.4, importance=importance, widths=Widths(round_to=1))
    first, second = (prune_model(model, task_of(model), config, seed=3) for _ in range(2))
    assert manifest_of(first) == manifest_of(second)
    assert 0.45 < count_macs(first, X) / count_macs(model, X) <= 0.6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("importance", sorted(LOSS))
def test_a_criterion_of_the_loss_says_that_it_needs_targets(importance: Criterion) -> None:
    model, groups = planted()
    with pytest.raises(BatchError, match=rf'{importance} takes the gradient of the loss and needs targets.*importance="taylor"'):
        scores(model, task_of(model, target=False), groups, importance)


@pytest.mark.parametrize("importance", sorted(set(CRITERIA) - LOSS))
def test_the_other_criteria_need_no_targets(importance: Criterion) -> None:
    model, groups = planted()
    found = scores(model, task_of(model, target=False), groups, importance)
    assert len(found) == len(groups.groups)


class Plain(nn.Module):
    """Without batch norms, and with a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.nn.functional.gelu(self.second(torch.nn.functional.gelu(self.first(x)))).mean((2, 3)))
        return y


def test_batch_norm_scales_need_batch_norms() -> None:
    model = Plain()
    with pytest.raises(RecipeError, match=r'needs batch norms.*got a model without them.*importance="taylor"'):
        prune_model(model, task_of(model), Prune(ratio=0.3, importance="bn_scale"))


@pytest.mark.parametrize("importance", [name for name in CRITERIA if name != "bn_scale"])
def test_a_net_without_batch_norms_is_pruned_by_every_other_criterion(importance: Criterion) -> None:
    torch.manual_seed(0)
    model = Plain().eval()
    pruned = prune_model(model, task_of(model), Prune(ratio=0.4, importance=importance, widths=Widths(round_to=1)))
    assert count_macs(pruned, X) <= 0.6 * count_macs(model, X)


def test_activations_are_seen_where_they_are_read() -> None:
    torch.manual_seed(0)
    model = Plain().eval()
    groups = dependency_groups(model, X[:4])
    found = channel_means(model, groups.groups, [(X, Y), (X[:3], Y[:3])], activation)
    first = torch.nn.functional.gelu(model.first(torch.cat([X, X[:3]]))).abs().mean((0, 2, 3))
    second = torch.nn.functional.gelu(model.second(torch.nn.functional.gelu(model.first(torch.cat([X, X[:3]]))))).mean((2, 3))
    assert torch.allclose(found[number_of(groups, "first")], first.double(), atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(found[number_of(groups, "second")], second.abs().mean(0).double(), atol=1e-6)  # type: ignore[arg-type]


def test_hooks_come_off_after_an_exception() -> None:
    model = make_small_resnet()
    groups = dependency_groups(model, X[:4])

    def failing(_: Tensor) -> Tensor:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        channel_means(model, groups.groups, [(X, Y)], failing)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gate_gradients_are_the_derivatives_of_scaling_what_consumers_read() -> None:
    model = make_small_resnet().double()
    groups, x = dependency_groups(model, X[:4].double()), X.double()
    number = number_of(groups, "block1.conv1")
    found = gate_gradients(model, groups.groups, [(x, Y)], task_loss(task_of(make_small_resnet()), "test"))[number][0]
    gate = torch.ones(8, dtype=torch.float64, requires_grad=True)
    handle = model.block1.conv2.register_forward_pre_hook(lambda _, inputs: (inputs[0] * gate.view(1, -1, 1, 1),))
    loss = torch.nn.functional.cross_entropy(model(x), Y)
    expected = torch.autograd.grad(loss, gate)[0]
    handle.remove()
    assert torch.allclose(found, expected, rtol=1e-6)


def test_curvature_is_the_second_derivative_by_the_gate_on_average() -> None:
    """With one atom after the other as its only sign the estimate would be exact; over many signs it is so on average."""
    torch.manual_seed(0)
    model = Plain().double().eval()
    groups, x = dependency_groups(model, X[:4].double()), X.double()
    number = number_of(groups, "second")
    objective = task_loss(task_of(Plain()), "test")
    only = [groups.groups[number]]
    found = curvatures(model, only, [(x, Y)] * 300, objective, torch.Generator().manual_seed(0))[0].second.mean(0)
    gate = torch.ones(6, dtype=torch.float64)

    def loss(gate: Tensor) -> Tensor:
        y = torch.nn.functional.gelu(model.second(torch.nn.functional.gelu(model.first(x)))).mean((2, 3))
        return torch.nn.functional.cross_entropy(model.head(y * gate), Y)

    exact = torch.autograd.functional.hessian(loss, gate).diagonal()
    assert torch.allclose(found, exact, atol=0.35 * float(exact.abs().max()))
    assert float(torch.corrcoef(torch.stack([found, exact]))[0, 1]) > 0.8


def test_batches_are_cut_into_pieces_where_targets_have_rows() -> None:
    assert [len(x) for x, _ in pieces([(X, Y)], 10)] == [10, 10, 4]
    assert [len(y) for _, y in pieces([((X, X), Y)], 10)] == [10, 10, 4]
    assert [len(x) for x, _ in pieces([(X, None)], 16)] == [16, 8]
    assert [len(x) for x, _ in pieces([(X, ["boxes"])], 16)] == [24]


def test_an_importance_of_ones_own_is_asked_once_and_followed() -> None:
    model, asked = make_small_resnet(), []

    def last_go_first(candidate: nn.Module, task: Task, groups: Groups) -> list[np.ndarray]:
        asked.append((candidate is model, task.name))
        return [np.arange(group.size, 0.0, -1.0) / group.size for group in groups.groups]

    config = Prune(ratio=0.3, importance=last_go_first, widths=Widths(round_to=1))
    manifest = manifest_of(prune_model(model, task_of(model, name="mine"), config))
    assert asked == [(False, "mine")]
    assert manifest is not None
    kept = manifest.kept["block1.conv1.weight"][0]
    assert kept == tuple(range(len(kept)))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (lambda m, t, g: [np.ones(2)], r"one array \(size,\) per group.*got 1 for \d+ groups.*groups\.groups"),
        (lambda m, t, g: [np.ones(group.size + 1) for group in g.groups], r"got shape \(9,\) for .*group\.size"),
        (lambda m, t, g: [torch.full((group.size,), torch.nan) for group in g.groups], r"finite, got NaN or infinity.*guard"),
        (lambda m, t, g: [np.full(group.size, np.inf) for group in g.groups], r"finite, got NaN or infinity"),
        (lambda m, t, g: [["high"] * group.size for group in g.groups], r"got list for .*real numbers"),
        (lambda m, t, g: [torch.ones(group.size) * 1j for group in g.groups], r"got Tensor for .*real numbers"),
        (lambda m, t, g: None, r"got None; return a list"),
        (lambda m, t, g: 1.0, r"got 1.0; return a list"),
        (lambda m, t, g: [1.0 for _ in g.groups], r"got shape \(\) for"),
    ],
)
def test_a_wrong_importance_of_ones_own_is_named(own: Callable[..., Any], message: str) -> None:
    model, groups = planted()
    with pytest.raises(RecipeError, match=message):
        scores(model, task_of(model), groups, own)


def test_an_importance_of_ones_own_may_be_in_bfloat16() -> None:
    model, groups = planted()
    found = scores(model, task_of(model), groups, lambda m, t, g: [torch.ones(group.size).bfloat16() for group in g.groups])
    assert all(np.array_equal(s, np.ones(group.size)) for s, group in zip(found, groups.groups, strict=True))


def test_a_class_in_place_of_an_importance_is_named() -> None:
    with pytest.raises(RecipeError, match=r"object, not a class, got ChannelAttention; write importance=ChannelAttention\(\)"):
        Prune(ratio=0.5, importance=ChannelAttention)


@pytest.mark.parametrize("importance", ["l1", "lamp", "fpgm", "magnitude", "group_norm"])
def test_a_weight_that_is_not_finite_is_an_error_and_one_that_nothing_reads_is_not(importance: Criterion) -> None:
    model = make_small_resnet()
    _, groups = planted()
    model.register_buffer("best_loss", torch.tensor(torch.nan))
    task = task_of(model)
    assert prune_model(model, task, Prune(ratio=0.3, importance=importance)) is not model
    with torch.no_grad():
        model.block1.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=f"by {importance} must be finite, got NaN"):
        scores(model, task, groups, importance)


@pytest.mark.parametrize("importance", ["taylor", "taylor_second", "activation"])
def test_a_later_batch_that_does_not_fit_is_shown(importance: Criterion) -> None:
    model, groups = planted()
    task = Task(model, (X[:4],), [(X, Y), (X[:, :, :, :4].expand(-1, 2, -1, -1), Y)], [(X, Y)])
    with pytest.raises(BatchError, match=r"must fit the model.*\(\d+, 2, 8, 4\)"):
        scores(model, task, groups, importance)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    model, groups = planted()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(output, target) + (output - output).abs().sqrt().sum()

    with pytest.raises(NotFiniteError, match="gradients must be finite"):
        scores(model, task_of(model, loss=loss), groups, "fisher")


class Attention(nn.Module):
    """One transformer block: queries and keys, whose width no weight reads, values, an MLP, layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.n1, self.n2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.m1, self.m2 = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(x)
        q, k, v = (part(y).unflatten(-1, (3, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.o(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.m2(torch.nn.functional.gelu(self.m1(self.n2(x))))
        return y


def attention() -> tuple[nn.Module, Tensor]:
    return Attention().eval(), nets.TOKENS


@pytest.mark.parametrize("net", ["attention", "grouped", "depthwise", "shuffled", "flattened", "heads", "signal", "tied_head"])
def test_every_criterion_scores_every_kind_of_net(net: str) -> None:
    torch.manual_seed(0)
    model, x = attention() if net == "attention" else nets.PRUNABLE[net]()
    y = torch.zeros(len(x))
    task = Task(model, (x,), [(x, y)] * 2, [(x, y)], loss=lambda o, t: o.square().mean(), metric=lambda o, t: t)
    groups = dependency_groups(model, x)
    assert groups.groups
    for importance in CRITERIA:
        if importance == "bn_scale" and net != "signal":
            continue
        found = scores(model, task, groups, importance)
        assert [s.shape for s in found] == [(group.size,) for group in groups.groups], importance
        assert all(np.isfinite(s).all() and (s >= 0).all() for s in found), importance
        assert all(s.max() > 0 for s in found), importance


def test_the_gate_on_the_width_of_queries_and_keys_counts_their_product_once() -> None:
    model, x = attention()
    groups = dependency_groups(model, x)
    number = number_of(groups, "q.")

    def objective(candidate: nn.Module, batch: Any) -> Tensor:
        return candidate(batch[0]).square().mean()

    found = gate_gradients(model, groups.groups, [(x, None)], objective)[number][0]
    gate = torch.ones(4, requires_grad=True)
    handle = model.q.register_forward_hook(lambda _, __, output: output * gate.repeat(3))
    expected = torch.autograd.grad(objective(model, (x, None)), gate)[0]
    handle.remove()
    assert groups.groups[number].size == 4
    assert torch.allclose(found, expected.double(), rtol=1e-4, atol=1e-9)
