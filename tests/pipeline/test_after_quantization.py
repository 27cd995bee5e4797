"""Architectures judged by what is left after quantization, in torch or as a file, with inherited weights or after training."""

import pickle

import pytest
import torch
from torch import nn

import paredown
from paredown import AfterQuantization
from paredown.core.effort import Effort
from paredown.core.steps import Widths
from paredown.core.training import Training
from paredown.nas import Choice, Data, Space, TrainingEvaluator
from paredown.nas.elastic import elastic
from paredown.nas.evaluators.evaluator import Job, Values, run_job
from paredown.nas.evaluators.supernet import SupernetEvaluator
from paredown.task.task import Task
from tests.conftest import SmallResNet, make_small_resnet, pattern_batches


def build(values: Values) -> nn.Module:
    return make_small_resnet(int(values["width"]))


def data() -> Data:
    return Data(pattern_batches(320, seed=1), pattern_batches(160, seed=2))


@pytest.fixture(scope="module")
def task(trained_small_resnet: SmallResNet) -> Task:
    x = pattern_batches(4, seed=3)[0][0]
    return Task(trained_small_resnet, (x,), pattern_batches(320, seed=1), pattern_batches(320, seed=2), name="patterns")


@pytest.mark.parametrize("target", [None, paredown.Target("onnxruntime")])
def test_a_subnet_scores_as_its_quantized_self(task: Task, target: paredown.Target | None) -> None:
    space = elastic(task, widths=Widths(floor=0.5, round_to=4), kernel=False)
    finish = AfterQuantization(paredown.Quantize(samples=64), target)
    evaluator = SupernetEvaluator(space, space.model, task, finish=finish)
    values = space.space.values(space.largest)
    result = run_job(evaluator, Job((), values))
    assert not result.failed, result.failed
    quantized = paredown.quantize(task, finish.config, model=evaluator.subnet(values), target=target).eval()
    with torch.no_grad():
        right = [(quantized(x).argmax(1) == y).float() for x, y in task.validation]
    assert result.metrics["top-1"] == pytest.approx(float(torch.cat(right).mean()), abs=2 / 320)
    assert str(finish) in evaluator.name
    assert pickle.loads(pickle.dumps(finish)) == finish


def test_a_network_is_trained_then_quantized_then_scored() -> None:
    coarse = paredown.Quantize(bits=2, samples=64)
    plain = TrainingEvaluator(build, data, Training(effort=Effort(40, "steps"), learning_rate=0.05))
    judged = TrainingEvaluator(build, data, plain.training, finish=AfterQuantization(coarse))
    job = Job((0,), {"width": 8})
    before, after = run_job(plain, job), run_job(judged, job)
    assert not before.failed and not after.failed, (before.failed, after.failed)
    assert after.metrics["accuracy"] < before.metrics["accuracy"] - 0.05  # 2 bits without training cost much
    assert 0 < after.deviation["accuracy"] < 0.05
    assert plain.name != judged.name


def test_a_search_takes_it_and_a_failed_quantization_is_a_failed_result() -> None:
    training = Training(effort=Effort(3, "steps"))
    space = Space((Choice("width", (8, 16)),))
    found = paredown.search(space, TrainingEvaluator(build, data, training, finish=AfterQuantization()), effort=2)
    assert found.source == "training" and len(found.front) == 1
    wrong = AfterQuantization(paredown.Quantize(protect=("nowhere",)))
    result = run_job(TrainingEvaluator(build, data, training, finish=wrong), Job((0,), {"width": 8}))
    assert "nowhere" in result.failed
