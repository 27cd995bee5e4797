"""Zeros of sparse weights survive any training; zeros of other weights are numbers like any other."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.effort import Effort
from paredown.core.steps import Training
from paredown.task.batches import Batch
from paredown.train.loop import fit_
from paredown.train.masks import Masks, keep_sparse_, mark_sparse_, sparse_names, sparse_weights
from tests.conftest import pattern_batches

WEIGHTS = ("block1.conv1.weight", "head.weight")
SHORT = Training(effort=Effort(4, "steps"), learning_rate=0.1)


@pytest.fixture
def sparse(small_resnet: nn.Module) -> nn.Module:
    """Half of two weights at zero and marked; all of a third one at zero, but not marked."""
    with torch.no_grad():
        for name in WEIGHTS:
            weight = small_resnet.get_parameter(name)
            weight[weight.abs() < weight.abs().median()] = 0
        small_resnet.get_parameter("block2.shortcut.0.weight").zero_()
    return mark_sparse_(small_resnet, WEIGHTS)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adamw", "ema": 0.9}, {"channels_last": False, "clip": None}, {"clip": 1e-3, "weight_decay": 0.5}],
    ids=str,
)
def test_zeros_stay_and_the_rest_is_trained(sparse: nn.Module, changes: dict[str, object]) -> None:
    before, masks = copy.deepcopy(sparse), sparse_weights(sparse)
    fit_(sparse, pattern_batches(128, seed=1, batch=32), cross_entropy, dataclasses.replace(SHORT, **changes))
    for name, mask in masks.items():
        weight, old = sparse.get_parameter(name).detach(), before.get_parameter(name)
        assert 0.4 < mask.float().mean() < 0.6
        assert torch.equal(weight == 0, mask)
        assert not torch.equal(weight, old)
    assert sparse.get_parameter("block2.shortcut.0.weight").count_nonzero() > 0


def test_gradients_of_what_is_masked_do_not_count_for_clipping(sparse: nn.Module) -> None:
    masks = Masks(sparse)
    cross_entropy(sparse, pattern_batches(32, seed=1)[0]).backward()
    masks.mask_gradients_()
    for name, mask in sparse_weights(sparse).items():
        gradient = sparse.get_parameter(name).grad
        assert gradient is not None and gradient[mask].count_nonzero() == 0 and gradient[~mask].count_nonzero() > 0


def test_a_model_that_was_never_sparse_has_no_masks(small_resnet: nn.Module) -> None:
    assert sparse_names(small_resnet) == () and sparse_weights(small_resnet) == {}
    Masks(small_resnet).mask_gradients_()


def test_the_mark_survives_copies_and_adds_up(sparse: nn.Module) -> None:
    other = mark_sparse_(copy.deepcopy(sparse), ["stem.0.weight", "head.weight"])
    assert sparse_names(sparse) == WEIGHTS
    assert sparse_names(other) == (*WEIGHTS, "stem.0.weight")
    assert not any("sparse" in name for name in sparse.state_dict())


def test_a_sparse_model_within_another_is_masked(sparse: nn.Module) -> None:
    whole = nn.Sequential(nn.Identity(), sparse)
    assert sparse_names(whole) == tuple(f"1.{name}" for name in WEIGHTS)
    masks = sparse_weights(whole)
    fit_(whole, pattern_batches(64, seed=1, batch=32), cross_entropy, SHORT)
    assert all(torch.equal(found, masks[name]) for name, found in sparse_weights(whole).items())


def test_a_loop_of_the_users_own_keeps_zeros_until_the_handles_are_removed(sparse: nn.Module) -> None:
    masks, handles = sparse_weights(sparse), keep_sparse_(sparse)
    optimizer = torch.optim.SGD(sparse.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(sparse, pattern_batches(32, seed=1)[0]).backward()
        optimizer.step()

    for _ in range(3):
        step()
    assert all(torch.equal(found, masks[name]) for name, found in sparse_weights(sparse).items())
    for handle in handles:
        handle.remove()
    step()
    assert not any(bool(found.any()) for found in sparse_weights(sparse).values())


def test_weights_without_a_gradient_are_left_alone(sparse: nn.Module) -> None:
    sparse.get_parameter("head.weight").requires_grad_(False)
    masks = sparse_weights(sparse)
    fit_(sparse, pattern_batches(64, seed=1, batch=32), cross_entropy, SHORT)
    assert all(torch.equal(found, masks[name]) for name, found in sparse_weights(sparse).items())


def test_tied_weight_is_masked_once_under_either_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight[0] = 0
    mark_sparse_(model, ["1.weight"])
    assert sparse_weights(model)["1.weight"][0].all()
    model(torch.ones(2, 3)).sum().backward()
    Masks(model).mask_gradients_()
    assert model[0].weight.grad is not None and model[0].weight.grad[0].count_nonzero() == 0
