"""From a user's own model to smaller trained ones: space, supernet, search, recovery, export; stopped and taken up again."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import paredown
from paredown.core.errors import ArtifactError, OutputError, RecipeError, SearchError, TaskError
from paredown.core.measurement import Measurement
from paredown.core.subnets import Subnets, SubnetSpace
from paredown.core.training import Resume
from paredown.measure.cost import count_macs
from paredown.measure.latency import PairedLatency
from paredown.nas.evaluators import supernet as supernet_module
from paredown.nas.evaluators.evaluator import Job
from paredown.nas.evaluators.executor import Done, Processes
from paredown.nas.problem import Result
from paredown.nas.strategies.random import Random
from paredown.nas.strategies.regularized_evolution import RegularizedEvolution
from paredown.pipeline import architecture, subnet_clock
from paredown.pipeline.architecture import SubnetResult, search_subnets
from paredown.pipeline.demo import DigitsNet, digits_task
from tests.conftest import SmallResNet, same_weights

SHORT = paredown.Training(effort="30 steps", learning_rate=0.05)
CONFIG = Subnets(
    macs="0.5x",
    space=SubnetSpace(paredown.Widths(floor=0.25, round_to=4), ("depth",)),
    supernet=SHORT,
    evaluations=14,
    keep=2,
    recover=paredown.Distill(training=SHORT),
)


@pytest.fixture(scope="module")
def task(trained_small_resnet: SmallResNet) -> paredown.Task:
    from tests.conftest import pattern_batches

    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    splits = [pattern_batches(n, seed=s) for n, s in ((640, 1), (320, 2), (320, 3))]
    return paredown.Task(trained_small_resnet, (x,), *splits, name="patterns")


@pytest.fixture(scope="module")
def found(task: paredown.Task) -> SubnetResult:
    return search_subnets(task, CONFIG, seed=1)


def test_what_comes_back_are_trained_modules_within_the_limit(task: paredown.Task, found: SubnetResult) -> None:
    whole = count_macs(task.model, task.inputs)
    assert len(found.candidates) == 2
    for candidate in found.candidates:
        assert type(candidate.model) is SmallResNet
        assert candidate.macs == count_macs(candidate.model, task.inputs) <= 0.5 * whole
    assert found.best.drop.value == min(c.drop.value for c in found.candidates)
    assert found.best.quality.value > 0.9
    assert found.search.source == "supernet"
    assert found.rank_correlation is None


def test_validation_and_test_stand_apart(found: SubnetResult) -> None:
    best = found.best
    assert best.test_quality is not None and best.test_drop is not None
    assert best.quality.n == best.test_quality.n == 320
    assert not any(each.test for each in found.search.front)
    data = json.loads(found.to_json())
    assert data["candidates"][0]["test_quality"]["value"] == best.test_quality.value
    assert len(data["search"]["history"]) == 14
    assert "model" not in data["candidates"][0]


@pytest.mark.slow
def test_the_winner_goes_into_prune_quantize_and_export_unchanged(
    task: paredown.Task, found: SubnetResult, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in found.best.model.state_dict().items()}
    paredown.save_checkpoint(found.best.model, tmp_path / "c")
    loaded = paredown.load_checkpoint(tmp_path / "c", SmallResNet(16))
    (x,) = task.example_inputs
    assert torch.equal(loaded.eval()(x), found.best.model(x))
    artifact = paredown.export(loaded, task, path=tmp_path / "m.onnx")
    outputs = paredown.load(artifact.path)(x.numpy())
    assert np.allclose(outputs, found.best.model(x).detach().numpy(), atol=1e-4)
    smaller = paredown.prune(task, paredown.Prune(ratio=0.2, widths=paredown.Widths(round_to=1)), model=found.best.model)
    assert count_macs(smaller, task.inputs) < found.best.macs
    quantized = paredown.quantize(task, paredown.Quantize(), model=found.best.model)
    assert paredown.export(quantized, task, path=tmp_path / "q.onnx").size_bytes < artifact.size_bytes
    assert all(torch.equal(value, before[name]) for name, value in found.best.model.state_dict().items())


def test_the_digits_net_ends_in_a_file_that_gives_what_the_module_gives(tmp_path: Path) -> None:
    task, short = digits_task(epochs=3), paredown.Training(effort="6 steps", learning_rate=0.05)
    space = SubnetSpace(paredown.Widths(floor=0.25))
    config = Subnets(macs="0.6x", space=space, supernet=short, evaluations=5, keep=1, recover=paredown.Distill(training=short))
    best = search_subnets(task, config, strategy=Random).best
    assert best.macs <= 0.6 * count_macs(task.model, task.inputs)
    paredown.save_checkpoint(best.model, tmp_path / "c")
    loaded = paredown.load_checkpoint(tmp_path / "c", DigitsNet())
    artifact = paredown.export(loaded, task, path=tmp_path / "m.onnx")
    (x,) = task.example_inputs
    assert np.allclose(paredown.load(artifact.path)(x.numpy()), best.model(x).detach().numpy(), atol=1e-4)


def refuse(*_arguments: object, **_options: object) -> nn.Module:
    raise AssertionError("made twice")


def test_a_stopped_search_goes_on_from_its_folder(task: paredown.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = supernet_module.SupernetEvaluator.evaluate, list[int]()

    def stops(self: supernet_module.SupernetEvaluator, job: supernet_module.Job) -> supernet_module.Outcome:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(self, job)

    config = dataclasses.replace(CONFIG, evaluations=8, keep=1, supernet=dataclasses.replace(SHORT, effort="5 steps"))
    with monkeypatch.context() as patched:
        patched.setattr(supernet_module.SupernetEvaluator, "evaluate", stops)
        with pytest.raises(KeyboardInterrupt):
            search_subnets(task, config, strategy=Random, out=tmp_path / "run")
    calls.clear()
    with monkeypatch.context() as patched:
        patched.setattr(architecture, "train_supernet", refuse)
        patched.setattr(supernet_module.SupernetEvaluator, "evaluate", lambda s, j: calls.append(1) or evaluate(s, j))
        first = search_subnets(task, config, strategy=Random, out=tmp_path / "run")
    assert len(calls) == 4
    with monkeypatch.context() as patched:
        patched.setattr(architecture, "train_supernet", refuse)
        patched.setattr(architecture, "distill_model", refuse)
        again = search_subnets(task, config, strategy=Random, out=tmp_path / "run")
    (x,) = task.example_inputs
    assert torch.equal(again.best.model(x), first.best.model(x))
    assert again.search.history == first.search.history
    assert json.loads((tmp_path / "run" / "result.json").read_text())["candidates"]
    with pytest.raises(ArtifactError, match="one search"):
        search_subnets(task, config, strategy=Random, out=tmp_path / "run", seed=5)
    other = search_subnets(task, config, strategy=functools.partial(RegularizedEvolution, population=3), out=tmp_path / "run")
    assert count_macs(other.best.model, task.inputs) == other.best.found.validation["macs"]


class Counted(Processes):
    """How many jobs its processes were asked to do."""

    asked = 0

    def run(self, jobs: Sequence[Job], done: Done) -> list[Result]:
        Counted.asked += len(jobs)
        return super().run(jobs, done)


def test_subnets_are_evaluated_in_other_processes(task: paredown.Task, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, evaluations=4, keep=1, supernet=dataclasses.replace(SHORT, effort="2 steps"))
    config = dataclasses.replace(config, recover=paredown.Distill(training=dataclasses.replace(SHORT, effort="1 steps")))
    here = search_subnets(task, config, strategy=Random, out=tmp_path / "run")
    (tmp_path / "run" / "search.jsonl").unlink()
    there = search_subnets(task, config, strategy=Random, out=tmp_path / "run", executor=Counted)
    assert Counted.asked == 4
    assert [r.architecture for r in there.search.history] == [r.architecture for r in here.search.history]
    for one, other in zip(here.search.history, there.search.history, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=1e-6)


def test_bad_input_is_told_before_the_supernet_is_trained(
    task: paredown.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture, "train_supernet", refuse)
    with pytest.raises(TaskError):
        search_subnets(task.model, CONFIG)  # type: ignore[arg-type]  # the point
    with pytest.raises(RecipeError, match="config must be a Subnets"):
        search_subnets(task, {"macs": "0.5x"})  # type: ignore[arg-type]  # the point
    with pytest.raises(SearchError, match="strategy must be a class"):
        search_subnets(task, CONFIG, strategy="ppo")  # type: ignore[arg-type]  # the point
    with pytest.raises(SearchError, match="executor makes an executor"):
        search_subnets(task, CONFIG, executor=2)  # type: ignore[arg-type]  # the point
    timed = dataclasses.replace(CONFIG, macs=None, latency="0.5x", evaluations=2)
    with pytest.raises(SearchError, match="timed one at a time"):
        search_subnets(task, timed, target="onnxruntime", executor=Processes)
    local = dataclasses.replace(task, loss=lambda output, target: -output.gather(1, target[:, None]).mean())
    with pytest.raises(SearchError, match="must pickle"):
        search_subnets(local, CONFIG, executor=Processes)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="out must be a folder"):
        search_subnets(task, CONFIG, out=tmp_path / "file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "search.json").write_text("{")
    with pytest.raises(ArtifactError, match="one search"):
        search_subnets(task, CONFIG, out=tmp_path / "run")


def timed_by_macs(
    monkeypatch: pytest.MonkeyPatch, task: paredown.Task, compare: Callable[..., PairedLatency], keep: int
) -> Subnets:
    """A short search under a limit of latency, whose clock is replaced by MACs."""
    monkeypatch.setattr(subnet_clock, "latency_of", lambda *_, **__: lambda model: count_macs(model, task.inputs) / 1e4)
    monkeypatch.setattr(architecture, "compare_latency", compare)
    short = dataclasses.replace(SHORT, effort="2 steps")
    config = dataclasses.replace(CONFIG, macs=None, latency="0.5x", evaluations=6, keep=keep)
    return dataclasses.replace(config, supernet=short, recover=paredown.Distill(training=short))


def test_a_limit_of_latency_is_measured_in_the_runtime(task: paredown.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by MACs here: what is tested is what is done with it."""
    ratio, compared = Measurement("latency_ratio", 0.4, "x"), list[tuple[str, str]]()

    def compare(_task: paredown.Task, first: Path, second: Path, _target: paredown.Target) -> PairedLatency:
        compared.append((first.name, second.name))
        return PairedLatency(ratio, ratio, ratio)

    config = timed_by_macs(monkeypatch, task, compare, keep=1)
    result = search_subnets(task, config, target="onnxruntime", strategy=Random)
    baseline = count_macs(task.model, task.inputs) / 1e4
    assert result.search.limits[0].high == pytest.approx(0.5 * baseline)
    assert all(c.found.validation["latency_ms"] <= 0.5 * baseline for c in result.candidates)
    assert result.best.latency_ratio == ratio
    assert compared == [("original.onnx", "candidate-0.onnx")]
    with pytest.raises(SearchError, match="needs a target"):
        search_subnets(task, config)
    with pytest.raises(SearchError, match="must keep latency_ms"):
        search_subnets(task, dataclasses.replace(config, latency="0.001x"), target="onnxruntime", strategy=Random)


@pytest.mark.parametrize("slow", [0, 1])
def test_what_may_be_too_slow_after_its_recovery_stands_last(
    task: paredown.Task, monkeypatch: pytest.MonkeyPatch, slow: int
) -> None:
    def compare(_task: paredown.Task, _first: Path, second: Path, _target: paredown.Target) -> PairedLatency:
        high = 0.55 if second.name == f"candidate-{slow}.onnx" else 0.49
        ratio = Measurement("latency_ratio", 0.45, "x", 9, 0.4, high)
        return PairedLatency(ratio, ratio, ratio)

    config = timed_by_macs(monkeypatch, task, compare, keep=2)
    result = search_subnets(task, config, target="onnxruntime", strategy=Random)
    assert [c.latency_ratio and c.latency_ratio.high for c in result.candidates] == [0.49, 0.55]


@pytest.mark.slow
def test_a_table_tells_latencies_and_what_is_kept_was_timed_for_real(
    task: paredown.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is MACs and a half of them again where the stem is narrow, which no sum of blocks can know."""
    timed, ratio = list[float](), Measurement("latency_ratio", 0.4, "x")

    def ms(model: nn.Module) -> float:
        surcharge = 1.5 if model.state_dict()["stem.0.weight"].shape[0] < 12 else 1.0
        timed.append(count_macs(model, task.inputs) / 1e4 * surcharge)
        return timed[-1]

    monkeypatch.setattr(subnet_clock, "latency_of", lambda *_, **__: ms)
    monkeypatch.setattr(subnet_clock, "timings", lambda _space: 5)
    monkeypatch.setattr(architecture, "compare_latency", lambda *_: PairedLatency(ratio, ratio, ratio))
    short = dataclasses.replace(SHORT, effort="2 steps")
    recover = paredown.Distill(training=short)
    config = dataclasses.replace(CONFIG, macs=None, latency="0.6x", keep=2, supernet=short, recover=recover)
    result = search_subnets(task, config, target="onnxruntime", strategy=Random, out=tmp_path / "run")
    assert result.blocks is not None and result.blocks.error is not None
    for candidate in result.candidates:
        real = candidate.found.validation["latency_ms"]
        assert real in timed and real <= result.search.limits[0].high
        assert real != pytest.approx(result.blocks(candidate.found.values), rel=1e-6)
    assert json.loads(result.to_json())["latency_table_error"] == result.blocks.error
    timed.clear()
    again = search_subnets(task, config, target="onnxruntime", strategy=Random, out=tmp_path / "run")
    assert again.blocks == result.blocks
    assert timed == []  # neither the table nor what was kept is timed again
    assert [c.found for c in again.candidates] == [c.found for c in result.candidates]
    (tmp_path / "run" / "latency.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"latency\.json"):
        search_subnets(task, config, target="onnxruntime", strategy=Random, out=tmp_path / "run")


def test_in_int8_files_are_judged_after_quantization_and_modules_come_back_in_float(task: paredown.Task) -> None:
    short = dataclasses.replace(SHORT, effort="10 steps")
    config = dataclasses.replace(
        CONFIG, precision="int8", supernet=short, recover=paredown.Distill(training=short), evaluations=3, keep=1
    )
    result = search_subnets(task, config, strategy=Random)
    best = result.best
    assert type(best.model) is SmallResNet
    assert "AfterQuantization" in result.search.evaluator
    quantized = paredown.quantize(task, paredown.Quantize(), model=best.model).eval()
    with torch.no_grad():
        right = torch.cat([(quantized(x).argmax(1) == y).float() for x, y in task.validation])
    assert best.quality.value == pytest.approx(float(right.mean()), abs=1e-6)


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


class Steps:
    """How many losses of the task were taken, and in which one the process dies."""

    taken, last = 0, 0


def counting(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    Steps.taken += 1
    if Steps.taken == Steps.last:
        raise Killed
    return F.cross_entropy(output, target)


TWELVE = paredown.Training(effort="12 steps", learning_rate=0.05)
KILLED = dataclasses.replace(CONFIG, supernet=TWELVE, recover=paredown.Distill(training=TWELVE), evaluations=3, keep=1)


@pytest.fixture(scope="module")
def straight(task: paredown.Task, tmp_path_factory: pytest.TempPathFactory) -> SubnetResult:
    """A search that nothing stops, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return search_subnets(task, KILLED, strategy=Random, seed=2, out=tmp_path_factory.mktemp("search") / "straight")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("at", [6, 12 + 5])
def test_a_search_killed_in_the_middle_of_a_training_ends_with_the_same_weights(
    task: paredown.Task, straight: SubnetResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Of 12 steps of the supernet, or of 12 of the recovery: what is kept of them is not trained again."""
    monkeypatch.setattr(architecture, "Resume", functools.partial(Resume, steps=2))
    stopped = dataclasses.replace(task, loss=counting)
    monkeypatch.setattr(Steps, "taken", 0)
    monkeypatch.setattr(Steps, "last", at)
    with pytest.raises(Killed):
        search_subnets(stopped, KILLED, strategy=Random, seed=2, out=tmp_path / "run")
    again = search_subnets(stopped, KILLED, strategy=Random, seed=2, out=tmp_path / "run")
    assert same_weights(again.best.model, straight.best.model)
    assert Steps.taken < at + 24 - 2
    assert not list((tmp_path / "run").glob("*-halfway"))


def test_labels_are_not_needed_and_without_a_limit_a_front_comes_back(task: paredown.Task) -> None:
    unlabelled = dataclasses.replace(task, train=[(x, None) for x, _ in task.train], test=None)
    short = dataclasses.replace(SHORT, effort="4 steps")
    recover = paredown.Distill(hard_weight=0, training=short)
    config = dataclasses.replace(CONFIG, macs=None, supernet=short, recover=recover, evaluations=10, keep=3)
    result = search_subnets(unlabelled, config, strategy=Random)
    macs = [c.found.validation["macs"] for c in result.candidates]
    assert len(set(macs)) == len(macs) >= 2
    assert [o.metric for o in result.search.objectives] == ["top-1", "macs"]
    assert all(c.test_quality is None and c.latency_ratio is None for c in result.candidates)


def test_a_convnet_is_recovered_by_hidden_layers_too_where_nothing_else_is_asked(
    task: paredown.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[paredown.Distill]()

    def recovered(subnet: nn.Module, _task: paredown.Task, config: paredown.Distill, **_options: object) -> nn.Module:
        asked.append(config)
        return subnet

    monkeypatch.setattr(architecture, "distill_model", recovered)
    short = dataclasses.replace(CONFIG, recover=None, keep=1, supernet=dataclasses.replace(SHORT, effort="2 steps"))
    search_subnets(task, short, strategy=Random)
    assert asked == [paredown.Distill.combined()]


def test_a_config_says_what_it_takes() -> None:
    with pytest.raises(RecipeError, match="one limit"):
        Subnets(latency="0.5x", macs="0.5x")
    with pytest.raises(RecipeError, match="varies names"):
        SubnetSpace(varies=("width",))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="keep must be"):
        Subnets(keep=0)
