"""Widths under a measured cost: against every combination on tables made by hand, and the repair."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.core.errors import NothingToPruneError
from paredown.core.steps import LatencyBy, Prune, Widths
from paredown.graph.groups import dependency_groups
from paredown.graph.units import Units
from paredown.measure.cost import count_macs
from paredown.measure.latency_table import LatencyTable
from paredown.pruning import goals
from paredown.pruning.latency import losses, measure_table, savings, select_widths
from paredown.pruning.prune import latency_table, prune_model
from paredown.pruning.select import Counts, Keep
from paredown.task.batches import Batch
from paredown.task.task import Task
from paredown.train.batchnorm import recalibrate_
from tests.conftest import SmallResNet, make_small_resnet

ALLOWED = [(2, 4, 8), (2, 4, 8), (4, 8)]


def columns(values: list[list[float]]) -> list[np.ndarray]:
    return [np.array(column) for column in values]


def total(values: list[np.ndarray], counts: Sequence[int]) -> float:
    return float(sum(v[a.index(c)] for v, a, c in zip(values, ALLOWED, counts, strict=True)))


STEPS = st.tuples(*(st.lists(st.floats(0.01, 0.3), min_size=len(a) - 1, max_size=len(a) - 1) for a in ALLOWED))


def falling(steps: tuple[list[float], ...]) -> list[np.ndarray]:
    """For each unit what its allowed counts lose, or save: the sum of the steps up to the whole, which is 0."""
    return [np.array([sum(column[i:]) for i in range(len(column) + 1)]) for column in steps]


@settings(deadline=None, max_examples=30)
@given(STEPS, STEPS, st.floats(0.1, 1.0))
def test_where_savings_add_up_the_answer_is_the_best_of_all(
    loss_steps: tuple[list[float], ...], saving_steps: tuple[list[float], ...], tightness: float
) -> None:
    loss, saving = falling(loss_steps), [0.3 * column for column in falling(saving_steps)]
    goal = 1 - tightness * sum(float(s.max()) for s in saving) + 1e-6
    found = select_widths(loss, saving, ALLOWED, lambda counts: 1 - total(saving, counts), goal)
    best = min(total(loss, c) for c in itertools.product(*ALLOWED) if 1 - total(saving, c) <= goal)
    assert 1 - total(saving, found) <= goal
    assert total(loss, found) <= best + 1e-4


@pytest.mark.parametrize("real", [0.6, 0.8, 1.3])
def test_savings_that_do_not_add_up_are_repaired_by_measuring(real: float) -> None:
    """Each saving is really `real` times what the table says."""
    loss = columns([[3, 1, 0], [4, 2, 0], [2, 0]])
    saving = columns([[0.3, 0.2, 0], [0.3, 0.2, 0], [0.3, 0]])
    tried: list[Counts] = []

    def measure(counts: Counts) -> float:
        tried.append(counts)
        return 1 - real * total(saving, counts)

    found = select_widths(loss, saving, ALLOWED, measure, 0.65)
    needed = len(tried)
    feasible = [list(c) for c in itertools.product(*ALLOWED) if measure(list(c)) <= 0.65 + 1e-12]
    assert total(loss, found) == pytest.approx(min(total(loss, c) for c in feasible))
    assert needed <= 7


def test_a_cost_that_nothing_brings_down_says_what_is_within_reach() -> None:
    zero = columns([[0.2, 0.1, 0], [0.2, 0.1, 0], [0.2, 0]])
    with pytest.raises(NothingToPruneError, match=r"0\.5x asked, 0\.9x reachable"):
        select_widths(zero, zero, ALLOWED, lambda _: 0.9, 0.5)


def test_losses_are_sums_of_the_scores_removed_and_savings_come_from_the_table() -> None:
    units = _unit(np.array([1.0, 5.0, 3.0, 2.0]))
    assert [c.tolist() for c in losses(units, [(1, 2, 4)])] == [[6.0, 3.0, 0.0]]
    table = LatencyTable(10.0, {units.names[0]: {1: 4.0, 4: 10.0}})
    assert savings(units, [(1, 2, 4)], table)[0].tolist() == pytest.approx([0.6, 0.4, 0.0])


def test_a_table_is_measured_once_per_unit_and_width() -> None:
    units, allowed, calls = _unit(np.zeros(16)), [tuple(range(2, 17))], []

    def latency(keep: list[Keep]) -> float:
        calls.append(int(keep[0].sum()))
        return 1.0 + calls[-1]

    table = measure_table(units, allowed, latency)
    assert calls == [16, 2, 7, 11]
    assert table == LatencyTable(17.0, {units.names[0]: {2: 3.0, 7: 8.0, 11: 12.0, 16: 17.0}})
    assert measure_table(units, allowed, latency, known=table) == table
    assert len(calls) == 4


def test_a_table_puts_the_cuts_where_the_runtime_gains_by_them(pattern_task: Task) -> None:
    """A runtime that only gains by narrower second blocks: those are cut, and the first stays whole."""
    model = pattern_task.model

    def latency(candidate: nn.Module) -> float:
        assert isinstance(candidate, SmallResNet)
        return 1.0 + candidate.block2.conv1.out_channels / 16

    config = Prune(latency="0.75x", widths=Widths(round_to=4), importance="magnitude")
    table = latency_table(model, pattern_task, config, latency)
    assert table.base_ms == 3.0 and set(table.entries["block1.conv1"].values()) == {3.0}
    pruned = prune_model(model, pattern_task, config, latency=latency, table=table)
    assert isinstance(pruned, SmallResNet)
    assert latency(pruned) <= 0.75 * 3.0
    assert pruned.block2.conv1.out_channels == 20
    assert pruned.block1.conv1.out_channels == 16 and pruned.stem[0].out_channels == 16  # type: ignore[union-attr,operator]  # a convolution
    blind = prune_model(model, pattern_task, config, latency=latency)
    assert count_macs(blind, pattern_task.inputs) <= count_macs(pruned, pattern_task.inputs)


@pytest.mark.parametrize(("nearer", "taken"), [("many MACs", "table"), ("few MACs", "macs"), ("none", "macs")])
def test_of_both_choices_the_nearest_to_the_original_is_taken(
    pattern_task: Task, monkeypatch: pytest.MonkeyPatch, nearer: str, taken: str
) -> None:
    model, sign = pattern_task.model, {"many MACs": -1.0, "few MACs": 1.0, "none": math.inf}[nearer]
    judged = list[int]()

    def latency(candidate: nn.Module) -> float:
        assert isinstance(candidate, SmallResNet)
        return 1.0 + candidate.block2.conv1.out_channels / 16

    def distance(_job: goals.Job, candidate: nn.Module, batches: list[Batch]) -> float:
        judged.append(len(batches))
        return sign * count_macs(candidate, pattern_task.inputs)

    def pruned(by: LatencyBy) -> int:
        config = Prune(latency="0.75x", latency_by=by, widths=Widths(round_to=4), importance="magnitude")
        return count_macs(prune_model(model, pattern_task, config, latency=latency, table=table), pattern_task.inputs)

    monkeypatch.setattr(goals, "_distance", distance)
    table = latency_table(model, pattern_task, Prune(latency="0.75x", widths=Widths(round_to=4)), latency)
    alone = {by: pruned(by) for by in ("macs", "table")}  # type: ignore[arg-type]  # two of three
    assert not judged and alone["macs"] < alone["table"]
    assert pruned("both") == alone[taken]
    assert judged == [min(10, len(list(pattern_task.train)))] * 2


def test_the_distance_is_that_of_outputs_with_batch_norms_measured_anew(pattern_task: Task) -> None:
    """By hand, for the candidate that keeps all, and for one that keeps half of the stem."""
    model = pattern_task.model
    groups = dependency_groups(model, pattern_task.inputs)
    units = Units(groups, [np.arange(group.size, 0, -1.0) for group in groups.groups])
    job = goals.Job(model, pattern_task, Prune(latency="0.5x"), groups, units)
    batches = list(pattern_task.train)[:3]
    keep = units.best([len(s) // 2 for s in units.scores])
    candidate = job.candidate(keep)
    found = goals._distance(job, job.candidate(keep), batches)
    recalibrate_(candidate, batches)
    with torch.no_grad():
        pairs = [(candidate(x), model(x)) for x, _ in batches]
    by_hand = np.mean([float((a - b).square().mean() / b.square().mean()) for a, b in pairs])
    assert found == pytest.approx(by_hand, rel=1e-5) and found > 0.01


@pytest.mark.parametrize("odd", ["a step that takes gradients", "some targets missing", "a last batch of one", "own generator"])
def test_choosing_asks_for_outputs_alone(pattern_task: Task, odd: str) -> None:
    batches = [(x, y) for x, y in pattern_task.train]
    task = pattern_task
    if odd == "a step that takes gradients":
        task = dataclasses.replace(task, train_step=_penalized)
    if odd == "some targets missing":
        task = dataclasses.replace(task, train=[(x, None if i % 2 else y) for i, (x, y) in enumerate(batches)])
    if odd == "a last batch of one":
        task = dataclasses.replace(task, train=[*batches[:2], (batches[0][0][:1], batches[0][1][:1])])
    if odd == "own generator":
        samples = torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches, strict=True)))
        generator = torch.Generator().manual_seed(0)
        task = dataclasses.replace(task, train=torch.utils.data.DataLoader(samples, 64, shuffle=True, generator=generator))

    def latency(candidate: nn.Module) -> float:
        return count_macs(candidate, task.inputs) / 1e6

    config = Prune(latency="0.6x", importance="magnitude", widths=Widths(round_to=4))
    table = latency_table(task.model, task, config, latency)
    pruned = prune_model(task.model, task, config, latency=latency, table=table)
    assert latency(pruned) <= 0.6 * latency(task.model)


def _penalized(model: nn.Module, batch: Batch) -> torch.Tensor:
    x = batch[0].clone().requires_grad_(True)
    loss = nn.functional.cross_entropy(model(x), batch[1])
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return loss + gradient.square().sum()


def test_a_uniform_scope_goes_by_macs(pattern_task: Task) -> None:
    """A table would cut each group by itself."""

    def latency(candidate: nn.Module) -> float:
        return count_macs(candidate, pattern_task.inputs) / 1e6

    config = Prune(latency="0.6x", scope="uniform", importance="magnitude", widths=Widths(round_to=1))
    table = latency_table(pattern_task.model, pattern_task, config, latency)
    one, other = (prune_model(pattern_task.model, pattern_task, config, latency=latency, table=t) for t in (table, None))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_table_without_an_answer_leaves_it_to_macs(pattern_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pattern_task.model

    def latency(candidate: nn.Module) -> float:
        return count_macs(candidate, pattern_task.inputs) / 1e6

    def nothing(*_: object, **__: object) -> Counts:
        raise NothingToPruneError("no width that was tried is fast enough", got="0.7x", remedy="ask for less")

    table = latency_table(model, pattern_task, Prune(latency="0.6x"), latency)
    monkeypatch.setattr(goals, "select_widths", nothing)
    pruned = prune_model(model, pattern_task, Prune(latency="0.6x"), latency=latency, table=table)
    assert latency(pruned) <= 0.6 * latency(model)
    with pytest.raises(NothingToPruneError, match="ask for less"):
        prune_model(model, pattern_task, Prune(latency="0.6x", latency_by="table"), latency=latency, table=table)


def _unit(scores: np.ndarray) -> Units:
    """The stem's channels of a net that is so wide, with these scores."""
    groups = dependency_groups(make_small_resnet(len(scores)), torch.zeros(2, 1, 8, 8))
    number = next(g for g, group in enumerate(groups.groups) if group.name == "stem.0")
    return Units(groups.without({*range(len(groups.groups))} - {number}), [scores])
