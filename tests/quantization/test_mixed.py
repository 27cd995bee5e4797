"""Mixed precision: the exact optimum, limits kept, the real metric has the last word."""

import itertools
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.core.errors import BudgetError
from paredown.core.steps import Quantize
from paredown.measure.latency_table import LatencyTable
from paredown.quantization.layers import layers_of
from paredown.quantization.mixed import (
    Facts,
    Table,
    average_bits,
    bits_table,
    bops_table,
    choose,
    cost_of,
    facts_of,
    latency_table,
    repair,
    rule_of_thumb,
    scheme_of,
    size_table,
    within_limits,
)
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import BitWidths, Scheme
from paredown.quantization.sensitivity import hessian_table, hessian_traces, metric_table, noise_table
from paredown.quantization.static import quantize_model
from paredown.task.batches import Batch
from paredown.task.task import Task
from tests.conftest import SmallResNet
from tests.quantization.models import relative

CHOICES = (BitWidths(2, 8), BitWidths(3, 8), BitWidths(4, 8), BitWidths(8, 8))


def tables(seed: int, layers: int = 4, choices: int = 3) -> tuple[Table, Table]:
    draw = np.random.default_rng(seed)
    return draw.random((layers, choices)), draw.random((layers, choices)) + 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.3, 1.0))
def test_the_choice_is_the_best_of_all(seed: int, part: float) -> None:
    sensitivity, cost = tables(seed)
    limit = float(cost.min(1).sum() + part * (cost.max(1).sum() - cost.min(1).sum()))
    every = itertools.product(range(3), repeat=4)
    best = min(cost_of(a, sensitivity) for a in every if cost_of(a, cost) <= limit)
    found = choose(sensitivity, {"size": cost}, {"size": limit})
    assert cost_of(found, sensitivity) == pytest.approx(best)
    assert within_limits(found, {"size": cost}, {"size": limit})


def test_two_limits_hold_together() -> None:
    sensitivity, size = tables(0)
    _, latency = tables(1)
    costs, limits = {"size": size, "latency": latency}, {"size": 2.2, "latency": 2.2}
    found = choose(sensitivity, costs, limits)
    assert within_limits(found, costs, limits)
    assert cost_of(found, sensitivity) >= cost_of(choose(sensitivity, costs, {"size": 2.2}), sensitivity)


def test_limits_out_of_reach_are_refused() -> None:
    sensitivity, cost = tables(0)
    with pytest.raises(BudgetError, match=r"the limit of size must be reachable, got 0.01; the least that any choice gives is"):
        choose(sensitivity, {"size": cost}, {"size": 0.01})
    with pytest.raises(BudgetError, match="a limit must name one of the costs, got bytes; the costs are size"):
        choose(sensitivity, {"size": cost}, {"bytes": 1.0})
    opposed = {"a": np.array([[1.0, 9.0]]), "b": np.array([[9.0, 1.0]])}
    with pytest.raises(BudgetError, match="some assignment must keep all limits together"):
        choose(np.array([[0.0, 0.0]]), opposed, {"a": 2.0, "b": 2.0})


def test_costs_count_what_files_store() -> None:
    facts = [Facts("a", 1000, 10, 50_000)]
    assert size_table(facts, [*CHOICES, BitWidths(32), BitWidths(4, 8, 32)]).tolist() == [[290, 440, 540, 1040, 4000, 660]]
    assert bops_table(facts, [BitWidths(4, 8)]).tolist() == [[50_000 * 32]]
    assert latency_table(facts, [BitWidths(8), BitWidths(32)], LatencyTable(3.0, {"a": {32: 5.0}})).tolist() == [[3, 5]]
    assert average_bits([*facts, Facts("b", 3000, 10, 1)], CHOICES, (0, 3)) == 6.5


def test_the_rule_gives_the_heaviest_layers_the_high_choice() -> None:
    facts = [Facts("a", 100, 1, 10), Facts("b", 100, 1, 1000), Facts("c", 100, 1, 100)]
    costs = {"bits": bits_table(facts, CHOICES)}
    assert rule_of_thumb(facts, costs, {"bits": 100.0 * (8 + 8 + 2)}, low=0, high=3) == (0, 3, 3)
    assert rule_of_thumb(facts, costs, {"bits": 100.0 * (8 + 2 + 2)}, low=0, high=3) == (0, 3, 0)
    with pytest.raises(BudgetError, match="the low choice everywhere must keep the limits"):
        rule_of_thumb(facts, costs, {"bits": 100.0 * 7}, low=2, high=3)


def test_repair_finds_what_the_additive_model_got_wrong() -> None:
    sensitivity, cost = np.array([[0.2, 0.0], [0.1, 0.0], [0.3, 0.0]]), np.array([[1.0, 2.0]] * 3)
    first = choose(sensitivity, {"size": cost}, {"size": 5.0})
    assert first == (1, 0, 1)

    def measure(assignment: tuple[int, ...]) -> float:
        return {(1, 1, 0): 0.1, (0, 1, 1): 0.3}.get(assignment, 0.5)

    verified = repair(first, sensitivity, {"size": cost}, {"size": 5.0}, measure, operator.lt)
    assert (verified.assignment, verified.result, verified.first) == ((1, 1, 0), 0.1, 0.5)
    assert repair(first, sensitivity, {"size": cost}, {"size": 5.0}, measure, operator.lt, evaluations=1).assignment == first


def test_repair_stays_where_it_is_unless_the_gain_is_beyond_doubt() -> None:
    sensitivity, cost = tables(0)
    first = choose(sensitivity, {"size": cost}, {"size": 9.0})
    noise = iter(np.random.default_rng(0).normal(size=99))
    verified = repair(first, sensitivity, {"size": cost}, {"size": 9.0}, lambda _: next(noise), lambda a, b: a < b - 9)
    assert verified.assignment == first and verified.evaluations == 20


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_repair_never_measures_what_breaks_a_limit_and_never_ends_worse(seed: int) -> None:
    sensitivity, cost = tables(seed)
    limits, seen = {"size": float(cost.mean(1).sum())}, []
    truth = np.random.default_rng(seed + 1).random((4, 3))

    def measure(assignment: tuple[int, ...]) -> float:
        seen.append(assignment)
        return cost_of(assignment, truth)

    if float(cost.min(1).sum()) <= limits["size"]:
        verified = repair(
            choose(sensitivity, {"size": cost}, limits), sensitivity, {"size": cost}, limits, measure, operator.lt, evaluations=9
        )
        assert all(within_limits(a, {"size": cost}, limits) for a in seen)
        assert verified.result == min(measure(a) for a in dict.fromkeys(seen)) <= verified.first
        assert verified.evaluations <= 9


@pytest.fixture(scope="module")
def by_choice(published: Task) -> list[QuantizedModel]:
    return [quantize_model(published.model, published, Quantize(samples=32), reduced=True, scheme=Scheme(c)) for c in CHOICES]


def test_facts_are_those_of_the_model(published: Task, by_choice: list[QuantizedModel]) -> None:
    facts = facts_of(by_choice[0], published.inputs)
    assert [f.path for f in facts][:2] == ["conv1", "layer1.0.conv1"]
    assert facts[0] == Facts("conv1", 432, 16, 432 * 32 * 32)
    assert sum(f.macs for f in facts) == pytest.approx(40.6e6, rel=0.01)


def test_a_mixed_model_beats_a_uniform_one_of_as_many_bits(
    published: Task, by_choice: list[QuantizedModel], calibration: list[Tensor], held_out: Tensor
) -> None:
    noise = noise_table(by_choice, calibration[:1])
    assert noise.shape == (20, 4)
    assert (noise[:, 3] < noise[:, 0]).all() and noise[:, 3].max() < 0.01
    facts = facts_of(by_choice[0], published.inputs)
    costs = {"bits": bits_table(facts, CHOICES)}
    limits = {"bits": 4.0 * sum(f.parameters for f in facts)}
    found = choose(noise, costs, limits)
    assert average_bits(facts, CHOICES, found) <= 4
    mixed = quantize_model(
        published.model, published, Quantize(samples=32), reduced=True, scheme=scheme_of(facts, CHOICES, found)
    )
    error = relative(published.model, mixed, held_out)
    assert error < relative(published.model, by_choice[2], held_out)
    ruled = rule_of_thumb(facts, costs, limits, low=1, high=3)
    by_rule = quantize_model(
        published.model, published, Quantize(samples=32), reduced=True, scheme=scheme_of(facts, CHOICES, ruled)
    )
    assert error < relative(published.model, by_rule, held_out)


def test_the_real_drop_of_single_layers_is_larger_in_2_bits(trained_small_resnet: SmallResNet, pattern_task: Task) -> None:
    models = [
        quantize_model(trained_small_resnet, pattern_task, Quantize(), reduced=True, scheme=Scheme(c))
        for c in (CHOICES[0], CHOICES[3])
    ]
    drops = metric_table(models, pattern_task)
    assert drops.shape == (len(layers_of(models[0])), 2)
    assert drops[:, 0].max() > 0.01 and np.abs(drops[:, 1]).max() < 0.01


class Square(nn.Module):
    """One linear layer; the mean squared error has the Hessian 2 / (samples * out) x^T x per output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


def test_the_trace_is_that_of_the_hessian() -> None:
    torch.manual_seed(0)
    model, x = Square(), torch.randn(64, 3)
    batches = [(x, torch.zeros(64, 2))]
    quantized = quantize_model(
        model, Task(model, (x[:4],), batches, batches, metric=lambda o, t: (o - t).mean(1)), Quantize(), reduced=False
    )

    def loss(m: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(m(batch[0]), batch[1])

    (trace,) = hessian_traces(quantized, loss, batches, draws=200)
    expected = 2 * x.square().sum() / (64 * 2) * 2
    assert trace == pytest.approx(float(expected), rel=0.05)
    table = hessian_table([quantized], [trace])
    q, weight = quantized.quantizer("fc@0:weight"), quantized.get_parameter("fc.weight").detach()
    assert table[0, 0] == pytest.approx(trace / 6 * float((q(weight) - weight).square().sum()), rel=1e-5)
