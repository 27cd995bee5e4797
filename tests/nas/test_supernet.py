"""Shared weights: what the sandwich trains, what a subnet inherits, and what its evaluation leaves alone."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import paredown
from paredown.core.effort import Effort
from paredown.core.errors import OutputError
from paredown.core.steps import Widths
from paredown.core.subnets import Subnets, SubnetSpace
from paredown.core.training import Resume, Training
from paredown.measure.cost import count_macs, count_parameters
from paredown.nas.elastic import Elastic, elastic
from paredown.nas.evaluators.evaluator import Job, run_job
from paredown.nas.evaluators.supernet import Sandwich, SupernetEvaluator, train_supernet
from paredown.task.batches import Batch
from paredown.task.task import Task
from tests.conftest import SmallResNet, pattern_batches, same_weights

TRAINING = Training(effort=Effort(40, "steps"), learning_rate=0.05)


def hard(_model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
    return F.cross_entropy(output, batch[1])


def soft(output: Tensor, wanted: Tensor, _batch: Batch) -> Tensor:
    assert not wanted.requires_grad
    return F.cross_entropy(output, wanted.softmax(1))


@pytest.fixture(scope="module")
def task(trained_small_resnet: SmallResNet) -> Task:
    x = pattern_batches(4, seed=3)[0][0]
    validation = pattern_batches(320, seed=2)
    return Task(copy.deepcopy(trained_small_resnet), (x,), pattern_batches(640, seed=1), validation, name="patterns")


@pytest.fixture(scope="module")
def space(task: Task) -> Elastic:
    return elastic(task, widths=Widths(floor=0.25, round_to=4), kernel=False)


@pytest.fixture(scope="module")
def supernet(task: Task, space: Elastic) -> nn.Module:
    return train_supernet(space, task.train, (hard, soft), TRAINING, seed=1)


def accuracy(evaluator: SupernetEvaluator, values: Any) -> float:
    result = run_job(evaluator, Job((), values))
    assert not result.failed, result.failed
    return result.metrics["top-1"]


def test_training_together_makes_subnets_better_and_keeps_the_largest(task: Task, space: Elastic, supernet: nn.Module) -> None:
    before, after = SupernetEvaluator(space, space.model, task), SupernetEvaluator(space, supernet, task)
    smallest, largest = space.space.values(space.smallest), space.space.values(space.largest)
    narrow = {name: 1 if name.startswith("depth:") else value for name, value in smallest.items()}
    assert accuracy(after, narrow) > accuracy(before, narrow) + 0.1
    assert accuracy(after, largest) > accuracy(before, largest) - 0.03
    assert accuracy(after, largest) > accuracy(after, smallest)
    assert type(supernet) is SmallResNet and not supernet.training


def test_the_original_is_not_touched_and_the_same_seed_gives_the_same_supernet(task: Task, space: Elastic) -> None:
    original = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    short = Training(effort=Effort(3, "steps"))
    twice = [train_supernet(space, task.train, (hard, soft), short, seed=2).state_dict() for _ in range(2)]
    assert all(torch.equal(value, twice[1][name]) for name, value in twice[0].items())
    assert all(torch.equal(value, original[name]) for name, value in task.model.state_dict().items())
    assert not torch.equal(twice[0]["head.weight"], original["head.weight"])


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


@pytest.mark.usefixtures("one_thread")
def test_a_training_that_was_killed_goes_on_to_the_same_supernet(task: Task, space: Elastic, tmp_path: Path) -> None:
    steps, short, resume = iter(range(100)), Training(effort=Effort(5, "steps")), Resume(tmp_path / "run", steps=2)

    def stops(model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        if next(steps) == 3:
            raise Killed
        return hard(model, batch, output)

    with pytest.raises(Killed):
        train_supernet(space, task.train, (stops, soft), short, seed=2, resume=resume)
    resumed = train_supernet(space, task.train, (stops, soft), short, seed=2, resume=resume)
    assert next(steps) == 4 + 3  # after the last write, in step 2, three of five were left
    assert same_weights(resumed, train_supernet(space, task.train, (hard, soft), short, seed=2))
    with pytest.raises(OutputError, match="this very training"):
        train_supernet(space, task.train, (hard, soft), short, seed=3, resume=resume)


def test_a_step_is_the_mean_over_the_largest_the_smallest_and_the_drawn(space: Elastic) -> None:
    seen: list[int] = []

    def counted(output: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        seen.append(1)
        return output.sum() * 0 + 6.0

    model, (batch,) = copy.deepcopy(space.model).train(), pattern_batches(8, seed=1)
    loss = Sandwich(space, lambda *_: torch.tensor(2.0), counted, 2, np.random.default_rng(0))
    assert loss(model, batch).item() == pytest.approx((2 + 3 * 6) / 4)
    assert len(seen) == 3


def test_the_largest_gets_no_gradient_from_what_it_teaches(space: Elastic) -> None:
    model, (batch,) = copy.deepcopy(space.model).train(), pattern_batches(8, seed=1)
    loss = Sandwich(space, lambda *_: torch.tensor(0.0), soft, 0, np.random.default_rng(0))
    loss(model, batch).backward()
    gradient, widest = model.block2.conv1.weight.grad, space.space.values(space.smallest)
    assert "depth:block1" in widest
    assert gradient is not None
    kept = space.manifest(widest).kept["block2.conv1.weight"]
    outside = torch.ones(len(gradient), dtype=torch.bool)
    outside[list(kept[0])] = False
    assert bool((gradient[outside] == 0).all()) and bool((gradient[~outside] != 0).any())


def test_an_evaluation_gives_the_metric_the_sizes_and_the_costs_and_changes_nothing(task: Task, space: Elastic) -> None:
    supernet = copy.deepcopy(space.model)
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    evaluator = SupernetEvaluator(space, supernet, task, {"latency_ms": lambda model: count_macs(model, task.inputs) / 1e4})
    values = space.space.values(space.space.sample(np.random.default_rng(0)))
    one, other = (run_job(evaluator, Job((), values)) for _ in range(2))
    subnet = evaluator.subnet(values)
    assert one.metrics == other.metrics
    assert set(one.metrics) == {"top-1", "params", "macs", "latency_ms"}
    assert one.metrics["params"] == count_parameters(subnet)
    assert one.metrics["latency_ms"] == one.metrics["macs"] / 1e4
    assert one.source == "supernet"
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


def test_statistics_are_measured_anew_for_each_subnet(task: Task, space: Elastic) -> None:
    evaluator = SupernetEvaluator(space, space.model, task, batches=4)
    values = {**space.space.values(space.largest), "width:stem.0": 8}
    plain, measured = space.subnet(values), evaluator.subnet(values)
    assert torch.equal(plain.stem[0].weight, measured.stem[0].weight)
    assert not torch.allclose(plain.block1.bn2.running_mean, measured.block1.bn2.running_mean, rtol=0.05)
    with torch.no_grad():
        images = torch.cat([x for x, _ in pattern_batches(640, seed=1)[:4]])
        expected = measured.stem[0](images).mean((0, 2, 3))
    assert torch.allclose(measured.stem[1].running_mean, expected, atol=1e-4)


def test_an_evaluator_goes_to_another_process(task: Task, space: Elastic) -> None:
    evaluator = SupernetEvaluator(space, space.model, task)
    again = pickle.loads(pickle.dumps(evaluator))
    values = space.space.values(space.smallest)
    assert run_job(again, Job((), values)).metrics == run_job(evaluator, Job((), values)).metrics


def test_batches_for_statistics_are_drawn_by_the_jobs_seed(task: Task, space: Elastic) -> None:
    x, y = (torch.cat(column) for column in zip(*task.train, strict=True))
    shuffling = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    evaluator = SupernetEvaluator(space, space.model, dataclasses.replace(task, train=shuffling), batches=1)
    values = space.space.values(space.smallest)
    torch.manual_seed(0)
    first = run_job(evaluator, Job((), values, seed=1)).metrics
    now = torch.get_rng_state()
    torch.manual_seed(5)
    assert run_job(evaluator, Job((), values, seed=1)).metrics == first
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), now)


def test_an_elastic_space_ranks_channels_by_its_seed(task: Task) -> None:
    x, y = (torch.cat(column) for column in zip(*task.train, strict=True))
    shuffling = dataclasses.replace(task, train=DataLoader(TensorDataset(x, y), 16, shuffle=True))
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        found.append(paredown.elastic_space(shuffling, Subnets(macs="0.5x", space=SubnetSpace(varies=()))))
    manifests = [each.manifest(each.space.values(each.smallest)) for each in found]
    assert manifests[0] == manifests[1]
