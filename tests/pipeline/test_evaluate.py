"""A file as a function of the task's batches."""

import copy
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Target, Task
from paredown.core.errors import BatchError
from paredown.core.measurement import Measurement
from paredown.deploy import stopwatch
from paredown.measure.latency import PairedLatency
from paredown.pipeline import evaluate
from paredown.pipeline.evaluate import candidate_of, compare_latency, export_checked, score_file, with_final
from tests.pipeline.samples import candidate, ratio

Pair = namedtuple("Pair", ["a", "b"])


class Difference(nn.Module):
    """Tells its inputs apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(a) - 2 * self.head(b)


def task(order: str) -> Task:
    torch.manual_seed(0)
    model = Difference()
    a, b = torch.randn(2, 60, 4)
    with torch.no_grad():
        target = model(a, b).argmax(1)
    inputs = {"a": a, "b": b}
    batch = ({name: inputs[name] for name in order}, target)
    return Task(model, {"a": a[:2], "b": b[:2]}, train=[batch], validation=[batch])


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_named_inputs_reach_the_file_by_their_names(tmp_path: Path, order: str) -> None:
    mine, file = task(order), tmp_path / "model.onnx"
    paredown.export(mine.model, mine, path=file)
    assert score_file(mine, file, Target(), "validation").value == 1.0


def test_inputs_that_the_file_does_not_have_are_refused(tmp_path: Path) -> None:
    class Lenient(Difference):
        def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
            return super().forward(a, b)

    plain, file = task("ab"), tmp_path / "model.onnx"
    model = Lenient()
    model.load_state_dict(copy.deepcopy(plain.model.state_dict()))
    inputs, target = next(iter(plain.validation))
    batch = ({**inputs, "c": inputs["a"]}, target)
    lenient = Task(model, plain.example_inputs, train=[batch], validation=[batch])
    paredown.export(model, lenient, path=file)
    with pytest.raises(BatchError, match="got a, b, c; put every name"):
        score_file(lenient, file, Target(), "validation")


def test_named_tuples_are_inputs_too(tmp_path: Path) -> None:
    plain, file = task("ab"), tmp_path / "model.onnx"
    inputs, target = next(iter(plain.validation))
    batch = (Pair(inputs["a"], inputs["b"]), target)
    named = Task(plain.model, (inputs["a"][:2], inputs["b"][:2]), train=[batch], validation=[batch])
    paredown.export(plain.model, named, path=file)
    assert score_file(named, file, Target(), "validation").value == 1.0


def test_a_system_that_cannot_tell_peak_memory_costs_the_figure_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = task("ab")
    artifact, _ = export_checked(given.model, given, Target(threads=1), tmp_path / "model.onnx")
    found, _ = candidate_of(given.model, given, artifact, recipe=paredown.Recipe(), baseline=None, confidence=0.95)
    measured, _ = with_final(found, given, found, 0.95)
    monkeypatch.delattr("os.wait4")
    unmeasured, _ = with_final(found, given, found, 0.95)
    assert measured.memory is not None and unmeasured.memory is None


@pytest.mark.parametrize(
    "baselines, taken",
    [((10.4,), 1), ((13, 10.1), 2), ((13, 13, 7), 3), ((13, 14, 15, 10), 3)],
    ids=["as before", "slower for a while", "slower, then faster", "slower for good"],
)
def test_the_final_timing_is_repeated_while_the_baseline_takes_another_time_than_before(
    baselines: tuple[float, ...], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples' baseline took 10 ms."""
    asked = iter(baselines)

    def compared(*_: object, **__: object) -> PairedLatency:
        a = next(asked)
        low, high = 0.97 * a, 1.03 * a
        return PairedLatency(
            Measurement("latency_ms", a, "ms", 60, low, high), Measurement("latency_ms", 5, "ms", 60, 5, 5), ratio(5 / a)
        )

    monkeypatch.setattr(evaluate, "compare_latency", compared)
    _, timed = with_final(candidate(), task("ab"), candidate("baseline"), 0.95)
    assert timed.value == baselines[taken - 1]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return scale * self.head(self.body(x).relu())


def test_an_input_that_is_one_number_for_the_whole_batch_goes_through_every_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, scale = torch.randn(60, 4), torch.tensor(2.0)
    batch = ((x, scale), x.argmax(1) % 2)
    given = Task(Scaled(), (x[:2], scale), train=[batch], validation=[batch])
    pruned = paredown.prune(given, paredown.Prune(ratio=0.4, widths=paredown.Widths(round_to=1)))
    artifact = paredown.export(paredown.quantize(given, paredown.Quantize(), model=pruned), given, path=tmp_path / "model.onnx")
    assert score_file(given, Path(artifact.path), Target(threads=1), "validation").n == 60


class Absent(nn.Linear):
    def forward(self, x: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, super().forward(x)


def test_an_output_that_is_none_stays_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    second = paredown.Metric(lambda output, target: (output[1].argmax(1) == target).double())
    batch = (x, x.argmax(1) % 2)
    given = Task(Absent(4, 2), (x[:2],), [batch], [batch], metric=second, loss=lambda output, _: output[1].sum())
    artifact = paredown.export(given.model, given, path=tmp_path / "model.onnx")
    assert score_file(given, Path(artifact.path), Target(threads=1), "validation").n == 60


def test_latency_is_timed_on_the_example_inputs_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "rounds", stopwatch.rounds)
    asked, target = task("ba"), Target(batch=3, threads=1)
    file = tmp_path / "model.onnx"
    export_checked(asked.model, asked, target, file)
    latency = compare_latency(asked, file, file, target)
    assert latency.ratio.n >= 54 and latency.ratio.lower <= latency.ratio.value <= latency.ratio.upper
    assert latency.a.value > 0 and latency.a.device == "onnxruntime, batch 3, 1 thread"
