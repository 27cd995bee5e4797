"""What bits by layer are chosen from: the Hessian's traces, what is done where there are none, and which sensitivity is taken."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import NotTrainableError, TaskError
from paredown.core.precision import LayerSensitivity
from paredown.core.steps import MixedBits, Quantize
from paredown.quantization.assign import _first, _Posed, choose_bits
from paredown.quantization.mixed import Assignment, Problem
from paredown.quantization.sensitivity import hessian_table, hessian_table_of_tensors, hessian_traces
from paredown.quantization.static import quantize_model
from paredown.task.task import Task


def task_of(model: nn.Module, x: Tensor, outputs: int) -> Task:
    """Data that say nothing: sensitivities of the output read the inputs alone."""
    batches = [(x, torch.zeros(len(x), outputs))]
    return Task(model, (x[:4],), batches, batches, metric=lambda o, t: (o - t).mean(1), loss=lambda o, t: (o - t).float().mean())


class Square(nn.Module):
    """One linear layer; half its output's squared distance, a sample, has the Hessian x^T x / samples per output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


def test_the_trace_is_that_of_the_hessian() -> None:
    torch.manual_seed(0)
    model, x = Square(), torch.randn(64, 3)
    quantized = quantize_model(model, task_of(model, x, 2), Quantize(), reduced=False)
    traces = hessian_traces(quantized, [x], draws=200, read=True)
    (trace,), (read,) = traces.weights, traces.tensors
    expected = x.square().sum() / 64 * 2
    assert trace == pytest.approx(float(expected), rel=0.05)
    assert read == pytest.approx(float(model.fc.weight.detach().square().sum()), rel=0.05)  # 64 rows, each its own
    table = hessian_table([quantized], traces)
    q, weight = quantized.quantizer("fc@0:weight"), quantized.get_parameter("fc.weight").detach()
    assert table[0, 0] == pytest.approx(trace / 6 * float((q(weight) - weight).square().sum()), rel=1e-5)
    over = hessian_table_of_tensors([quantized], traces, [x])
    grid = quantized.quantizer("fc@0:input")
    assert over[0, 0] == pytest.approx(read / x.numel() * float((grid(x) - x).square().sum()), rel=1e-5)


def test_the_trace_of_one_layer_holds_nothing_of_the_others(published: Task, calibration: list[Tensor]) -> None:
    """As signs in all layers at once would have it: one draw of few samples must be near what many give, in every layer."""
    quantized = quantize_model(published.model, published, Quantize(samples=32), reduced=True)
    once = hessian_traces(quantized, calibration[:1], draws=4).weights
    often = hessian_traces(quantized, calibration[:1], draws=40, seed=1).weights
    assert (once > 0.5 * often).all() and (once < 2 * often).all()


class Rounded(nn.Module):
    """No gradient gets behind the rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).round().detach())
        return out


class Argmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))).argmax(1, keepdim=True).float()


class Rooted(Rounded):
    """The slope of the root that isn't taken is infinite, and 0 times that is no number."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.second(torch.where(h > 0, h.sqrt(), torch.zeros_like(h)))
        return out


class Stepped(Rounded):
    """By an operator that torch has no derivative of."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.second(torch.heaviside(h, torch.ones_like(h)))
        return out


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (Rounded(), "none for 1 of 2"),
        (Argmax(), "none for 2 of 2"),
        (Rooted(), "NaN or infinity"),
        (Stepped(), "derivative for aten::heaviside is not implemented"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_hessian_of_a_model_without_gradients_is_refused_and_bits_go_by_noise(model: nn.Module, got: str) -> None:
    x = torch.randn(8, 3)
    task = task_of(model, x, 1)
    quantized = quantize_model(model, task, Quantize(), reduced=False)
    with pytest.raises(NotTrainableError, match=f'{got}; write sensitivity="noise"'):
        hessian_traces(quantized, [x])
    chosen = choose_bits(quantized, task, MixedBits(5, evaluations=1))
    assert {row.measure for row in chosen.evidence} == {"noise"}


def test_the_hessian_sees_few_samples_at_a_time(published: Task, calibration: list[Tensor]) -> None:
    quantized, sizes = quantize_model(published.model, published, Quantize(samples=32), reduced=True), list[int]()
    quantized.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    batch = calibration[0][:21]
    traces = hessian_traces(quantized, [batch], draws=1, read=True)
    hessian_table_of_tensors([quantized], traces, [batch])
    assert sizes == [7, 7, 7] * 2


@pytest.mark.parametrize(
    ("lost", "taken"),
    [
        ({(0,): (0.2, 1.0), (1,): (0.1, 2.0)}, "hessian"),
        ({(0,): (0.1, 2.0), (1,): (0.2, 1.0)}, "noise"),
        ({(0,): (0.1, 2.0), (1,): (0.1, 1.0)}, "hessian"),  # a tie of the metric
    ],
)
def test_auto_takes_what_loses_less(lost: dict[Assignment, tuple[float, float]], taken: str) -> None:
    table = np.zeros((1, 2))

    def posed(kind: LayerSensitivity) -> _Posed:
        return _Posed(kind, (table, table), Problem(table, {}, {}), (0,) if kind == "noise" else (1,))

    assert _first(MixedBits(5), posed, lost.__getitem__).kind == taken


def test_outputs_that_are_no_floats_are_refused_with_the_way_out() -> None:
    class Classes(Argmax):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).long()

    x = torch.randn(8, 3)
    task = task_of(Classes(), x, 1)
    quantized = quantize_model(task.model, task, Quantize(), reduced=False)
    with pytest.raises(TaskError, match='got int64; write sensitivity="metric"'):
        choose_bits(quantized, task, MixedBits(5, evaluations=1))
