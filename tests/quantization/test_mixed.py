"""Mixed precision: the exact optimum, limits kept, the real metric has the last word."""

import itertools
import operator
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.core.errors import BudgetError
from paredown.core.steps import MixedBits, Quantize
from paredown.measure.latency_table import LatencyTable
from paredown.quantization.assign import quantize_mixed, reading_at
from paredown.quantization.costs import (
    READS,
    Facts,
    Table,
    bops_table,
    facts_of,
    latency_table,
    size_table,
    stored_bits,
)
from paredown.quantization.layers import layers_of
from paredown.quantization.mixed import (
    Assignment,
    Problem,
    Sharing,
    average_bits,
    choose,
    cost_of,
    repair,
    rule_of_thumb,
    scheme_of,
)
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import BitWidths, Scheme
from paredown.quantization.sensitivity import (
    metric_table,
    noise_table,
    tensors_of,
)
from paredown.quantization.static import quantize_model
from paredown.task.task import Task
from tests.conftest import SmallResNet
from tests.quantization.models import relative

CHOICES = (BitWidths(2, 8), BitWidths(3, 8), BitWidths(4, 8), BitWidths(8, 8))


def bits_table(facts: Sequence[Facts], choices: Sequence[BitWidths]) -> Table:
    """Bits of the weights by themselves: limited to 4 times all weights, they average 4 bits."""
    return np.array([[float(f.parameters * c.weight_bits) for c in choices] for f in facts])


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
    problem = Problem(sensitivity, {"size": cost}, {"size": limit})
    found = choose(problem)
    assert cost_of(found, sensitivity) == pytest.approx(best)
    assert problem.holds(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.2, 1.0))
def test_the_choice_is_the_best_where_layers_share_what_they_read(seed: int, part: float) -> None:
    draw = np.random.default_rng(seed)
    choices = (BitWidths(2, 4), BitWidths(2, 8), BitWidths(8, 4), BitWidths(8, 8), BitWidths(32, 32))
    sensitivity, cost = draw.random((4, 5)), draw.random((4, 5)) + 0.1
    sharing = Sharing(choices, (0, 1, 1, 2), (4, 8), draw.random((3, 2)))
    limit = float(cost.min(1).sum() + part * (cost.max(1).sum() - cost.min(1).sum()))
    problem = Problem(sensitivity, {"size": cost}, {"size": limit}, sharing)
    possible = [a for a in itertools.product(range(5), repeat=4) if problem.holds(a)]
    if not possible:
        with pytest.raises(BudgetError, match="some assignment must keep all limits together"):
            choose(problem)
        return
    found = choose(problem)
    assert problem.holds(found)
    assert problem.predicted(found) == pytest.approx(min(problem.predicted(a) for a in possible))
    for layer, choice in itertools.product(range(4), range(5)):  # a layer that moves takes along those that read what it reads
        moved = Problem(sensitivity, {"size": cost}, {}, sharing).moved(found, layer, choice)
        assert moved[layer] == choice and Problem(sensitivity, {}, {}, sharing).holds(moved)


def test_a_tensor_that_two_layers_read_is_lost_on_once() -> None:
    choices = (BitWidths(8, 4), BitWidths(8, 8), BitWidths(32, 32))
    sharing = Sharing(choices, (0, 0), (4, 8), np.array([[5.0, 1.0]]))
    problem = Problem(np.zeros((2, 3)), {}, {}, sharing)
    assert [problem.predicted(a) for a in ((0, 0), (1, 1), (1, 2), (2, 2))] == [5, 1, 1, 0]
    assert not problem.holds((0, 1)) and problem.holds((0, 2))


@given(st.integers(0, 10_000), st.floats(0.3, 1.0))
@settings(max_examples=20, deadline=None)
def test_layers_of_one_module_have_one_choice(seed: int, part: float) -> None:
    sensitivity, cost = tables(seed)
    low, high = cost.min(1).sum(), cost.max(1).sum()
    problem = Problem(sensitivity, {"c": cost}, {"c": high if part == 1 else low + part * (high - low)}, modules=(0, 1, 0, 3))
    fits = [a for a in itertools.product(range(3), repeat=4) if a[0] == a[2] and problem.holds(a)]
    if not fits:
        return
    found = choose(problem)
    assert found[0] == found[2] and problem.holds(found)
    assert problem.predicted(found) == pytest.approx(min(problem.predicted(a) for a in fits))
    assert problem.moved(found, 2, 1)[0] == problem.moved(found, 2, 1)[2] == 1
    assert not problem.holds((0, 0, 1, 0))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out: Tensor = self.last(self.attn(hidden, hidden, hidden)[0]).mean(1)
        return out


@pytest.mark.parametrize("average", [3.0, 5.0])
def test_a_limit_holds_where_a_module_has_two_layers(average: float) -> None:
    torch.manual_seed(0)
    model, batches = Attending(), [(torch.randn(8, 5, 16), torch.zeros(8, dtype=torch.int64))]
    task = Task(model, (batches[0][0][:2],), batches, batches)
    quantized = quantize_mixed(model, task, Quantize(bits=MixedBits(average=average, evaluations=1)), reduced=False)
    layers = [(quantized.scheme.of(layer.path).weight_bits, layer.weight(quantized).numel()) for layer in layers_of(quantized)]
    assert len(layers) == 4 and sum(stored_bits(b) * n for b, n in layers) <= average * sum(n for _, n in layers)


def test_two_limits_hold_together() -> None:
    sensitivity, size = tables(0)
    _, latency = tables(1)
    costs, limits = {"size": size, "latency": latency}, {"size": 2.2, "latency": 2.2}
    problem = Problem(sensitivity, costs, limits)
    found = choose(problem)
    assert problem.holds(found)
    assert problem.predicted(found) >= problem.predicted(choose(Problem(sensitivity, costs, {"size": 2.2})))


def test_limits_out_of_reach_are_refused() -> None:
    sensitivity, cost = tables(0)
    with pytest.raises(BudgetError, match=r"the limit of size must be reachable, got 0.01; the least that any choice gives is"):
        Problem(sensitivity, {"size": cost}, {"size": 0.01})
    with pytest.raises(BudgetError, match="a limit must name one of the costs, got bytes; the costs are size"):
        Problem(sensitivity, {"size": cost}, {"bytes": 1.0})
    opposed = {"a": np.array([[1.0, 9.0]]), "b": np.array([[9.0, 1.0]])}
    with pytest.raises(BudgetError, match="some assignment must keep all limits together"):
        choose(Problem(np.array([[0.0, 0.0]]), opposed, {"a": 2.0, "b": 2.0}))


def test_costs_count_what_files_store() -> None:
    facts = [Facts("a", 1000, 10, 50_000)]
    assert size_table(facts, [*CHOICES, BitWidths(32), BitWidths(4, 8, 32)]).tolist() == [[290, 440, 540, 1040, 4000, 660]]
    assert bops_table(facts, [BitWidths(4, 8)]).tolist() == [[50_000 * 32]]
    assert bops_table(facts, [BitWidths(4, 4)]).tolist() == [[50_000 * 16]]
    measured = LatencyTable(3.0, {"a": {32: 5.0}, f"a{READS}": {4: 3.5}})
    widths = [BitWidths(8), BitWidths(4), BitWidths(8, 4), BitWidths(4, 32), BitWidths(32, 32)]
    assert latency_table(facts, widths, measured).tolist() == [[3, 3, 3.5, 5, 5]]
    assert average_bits([*facts, Facts("b", 3000, 10, 1)], CHOICES, (0, 3)) == 6.5


def test_the_rule_gives_the_heaviest_layers_the_high_choice() -> None:
    facts = [Facts("a", 100, 1, 10), Facts("b", 100, 1, 1000), Facts("c", 100, 1, 100)]
    costs = {"bits": bits_table(facts, CHOICES)}

    def within(bits: float) -> Problem:
        return Problem(np.zeros((3, 4)), costs, {"bits": 100.0 * bits})

    assert rule_of_thumb(facts, within(8 + 8 + 2), low=0, high=3) == (0, 3, 3)
    assert rule_of_thumb(facts, within(8 + 2 + 2), low=0, high=3) == (0, 3, 0)
    with pytest.raises(BudgetError, match="the low choice everywhere must keep the limits"):
        rule_of_thumb(facts, within(7), low=2, high=3)


def test_repair_finds_what_the_additive_model_got_wrong() -> None:
    sensitivity, cost = np.array([[0.2, 0.0], [0.1, 0.0], [0.3, 0.0]]), np.array([[1.0, 2.0]] * 3)
    problem = Problem(sensitivity, {"size": cost}, {"size": 5.0})
    first = choose(problem)
    assert first == (1, 0, 1)

    def measure(assignment: Assignment) -> float:
        return {(1, 1, 0): 0.1, (0, 1, 1): 0.3}.get(assignment, 0.5)

    verified = repair(first, problem, measure, operator.lt)
    assert (verified.assignment, verified.result, verified.first) == ((1, 1, 0), 0.1, 0.5)
    assert repair(first, problem, measure, operator.lt, evaluations=1).assignment == first


def test_repair_stays_where_it_is_unless_the_gain_is_beyond_doubt() -> None:
    sensitivity, cost = tables(0)
    problem = Problem(sensitivity, {"size": cost}, {"size": 9.0})
    first = choose(problem)
    noise = iter(np.random.default_rng(0).normal(size=99))
    verified = repair(first, problem, lambda _: next(noise), lambda a, b: a < b - 9)
    assert verified.assignment == first and verified.evaluations == 20


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_repair_never_measures_what_breaks_a_limit_and_never_ends_worse(seed: int) -> None:
    sensitivity, cost = tables(seed)
    limits, seen = {"size": float(cost.mean(1).sum())}, []
    truth = np.random.default_rng(seed + 1).random((4, 3))

    def measure(assignment: Assignment) -> float:
        seen.append(assignment)
        return cost_of(assignment, truth)

    if float(cost.min(1).sum()) <= limits["size"]:
        problem = Problem(sensitivity, {"size": cost}, limits)
        verified = repair(choose(problem), problem, measure, operator.lt, evaluations=9)
        assert all(problem.holds(a) for a in seen)
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


def test_what_is_read_in_fewer_bits_loses_more(
    published: Task, by_choice: list[QuantizedModel], calibration: list[Tensor]
) -> None:
    read = [reading_at(by_choice[3], published, bits) for bits in (4, 8)]
    noise = noise_table(read, calibration[:1], read=True)
    assert noise.shape == (len(tensors_of(by_choice[3])), 2)
    assert (noise[:, 0] > noise[:, 1]).all() and noise[:, 1].max() < 0.01
    together = noise_table([by_choice[3]], calibration[:1])  # of weights alone: what is read isn't in it
    assert together.shape == (20, 1)


def test_a_mixed_model_beats_a_uniform_one_of_as_many_bits(
    published: Task, by_choice: list[QuantizedModel], calibration: list[Tensor], held_out: Tensor
) -> None:
    noise = noise_table(by_choice, calibration[:1])
    assert noise.shape == (20, 4)
    assert (noise[:, 3] < noise[:, 0]).all() and noise[:, 3].max() < 0.01
    facts = facts_of(by_choice[0], published.inputs)
    costs = {"bits": bits_table(facts, CHOICES)}
    limits = {"bits": 4.0 * sum(f.parameters for f in facts)}
    problem = Problem(noise, costs, limits)
    found = choose(problem)
    assert average_bits(facts, CHOICES, found) <= 4
    mixed = quantize_model(
        published.model, published, Quantize(samples=32), reduced=True, scheme=scheme_of(facts, CHOICES, found)
    )
    error = relative(published.model, mixed, held_out)
    assert error < relative(published.model, by_choice[2], held_out)
    ruled = rule_of_thumb(facts, problem, low=1, high=3)
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
