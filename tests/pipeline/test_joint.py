"""Architecture, bits and sparsity searched together, and the network that comes back."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import paredown
from paredown import JointEvaluator, Quantize
from paredown.core.errors import SearchError
from paredown.core.steps import Widths
from paredown.nas import Limit, Objective, SupernetEvaluator, per_layer, product
from paredown.nas.elastic import elastic
from paredown.nas.evaluators.evaluator import Job, Values, run_job
from paredown.task.task import Task
from tests.conftest import SmallResNet, pattern_batches

LAYERS = ("block1.conv1", "block2.conv2")


@pytest.fixture(scope="module")
def task(trained_small_resnet: SmallResNet) -> Task:
    x = pattern_batches(4, seed=3)[0][0]
    validation = pattern_batches(160, seed=2)
    return Task(copy.deepcopy(trained_small_resnet), (x,), pattern_batches(128, seed=1), validation, name="patterns")


def whole(task: Task) -> JointEvaluator:
    return JointEvaluator(lambda _: task.model, task, Quantize(samples=64))


def evaluated(evaluator: JointEvaluator, values: Values) -> dict[str, float]:
    result = run_job(evaluator, Job((), values))
    assert not result.failed, result.failed
    return dict(result.metrics)


def test_bits_and_zeros_are_those_that_were_asked_for(task: Task) -> None:
    plain = evaluated(whole(task), {})
    values = {"bits.block1.conv1": 4, "bits.block2.conv2": 32, "sparsity.block1.conv1": 0.5}
    found, made = evaluated(whole(task), values), whole(task).module(values)
    one, two = (task.model.get_parameter(f"{name}.weight").numel() for name in LAYERS)
    assert found["bytes"] == plain["bytes"] - 4 * one / 8 + 24 * two / 8
    assert found["nonzero"] == plain["nonzero"] - one // 2 and found["macs"] == plain["macs"]
    bits = {row.module: row.weight_bits for row in paredown.layer_bits(made)}
    assert bits["block1.conv1"] == 4 and bits["block2.conv2"] == 32 and bits["block1.conv2"] == 8
    kept = made.get_parameter("block1.conv1.weight")
    assert int((kept == 0).sum()) >= one // 2
    assert evaluated(whole(task), {}) == plain, "the model itself is left alone"
    four = dataclasses.replace(whole(task), config=Quantize(samples=64, bits=4))
    assert evaluated(four, {})["bits"] == 4 and evaluated(four, {"bits.block1.conv1": 8})["bytes"] > evaluated(four, {})["bytes"]
    protected = dataclasses.replace(whole(task), task=dataclasses.replace(task, protect=("block1",)))
    assert evaluated(protected, {"bits.block1.conv1": 2})["bytes"] > plain["bytes"]
    assert evaluated(whole(task), dict.fromkeys((f"bits.{name}" for name in LAYERS), 2))["top-1"] <= plain["top-1"]


def test_a_joint_search_hands_back_a_network_that_exports(task: Task, tmp_path: Path) -> None:
    space = elastic(task, widths=Widths(floor=0.5, round_to=8), kernel=False)
    subnets = SupernetEvaluator(space, space.model, task)
    joint = product(net=space.space, bits=per_layer(LAYERS, (4, 8)), sparsity=per_layer(LAYERS[:1], (0.0, 0.5)))
    evaluator = JointEvaluator(subnets.subnet, task, Quantize(samples=64))
    limit = 0.8 * evaluated(evaluator, joint.values(tuple(size - 1 for size in joint.sizes)))["bytes"]
    goal: dict[str, Any] = {"objectives": (Objective("top-1", maximize=True),), "limits": (Limit("bytes", high=limit),)}
    found, again = (paredown.search(joint, evaluator, effort=8, store=tmp_path / "run.jsonl", **goal) for _ in range(2))
    assert again.history == found.history
    assert found.feasible and found.best.validation["bytes"] <= limit
    model = evaluator.module(found.best.values)
    artifact = paredown.export(model, task, path=tmp_path / "model.onnx")
    x = task.inputs[0]
    assert torch.allclose(torch.as_tensor(paredown.load(artifact.path)(x.numpy())), model(x), atol=0.2)
    assert sum(p.numel() for p in model.parameters()) <= sum(p.numel() for p in task.model.parameters())


def test_what_a_joint_space_cannot_be_is_told(task: Task) -> None:
    for values, message in (
        ({"bits.nowhere": 8}, "name layers of the network, got nowhere"),
        ({"width.block1": 8}, "parts net, bits and sparsity"),
        ({"sparsity.block1.conv1": 1.0}, "in [0, 1)"),
        ({"bits.block1.conv1": 1}, "weight_bits must be in"),
    ):
        assert message in run_job(whole(task), Job((), values)).failed
    with pytest.raises(SearchError, match="static quantization"):
        JointEvaluator(nn.Identity, task, Quantize(kind="dynamic"))
