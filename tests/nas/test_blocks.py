"""Latency from a table of blocks: sums, what lies in a skipped branch, the correction, and going on where it stopped."""

import pytest
import torch
from torch import nn

from paredown.core.errors import ArtifactError
from paredown.core.steps import Widths
from paredown.measure.cost import count_macs
from paredown.measure.latency_table import LatencyTable
from paredown.nas.dimensions import ActiveIf, Ordinal
from paredown.nas.elastic import Elastic, elastic
from paredown.nas.evaluators.blocks import TIMED, BlockLatency, Timed, measure_blocks, timings
from paredown.nas.space import Space
from paredown.task.task import Task
from tests.conftest import make_small_resnet, pattern_batches

SPACE = Space((Ordinal("width:a", (8, 16)), Ordinal("depth:b", (0, 1))), (ActiveIf("width:a", "depth:b", (1,)),))
TABLE = LatencyTable(10.0, {"width:a": {8: 8.0, 16: 10.0}, "depth:b": {0: 5.0, 1: 10.0}})


@pytest.fixture(scope="module")
def space() -> Elastic:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    task = Task(make_small_resnet(16), (x,), pattern_batches(32, seed=1), pattern_batches(32, seed=2))
    return elastic(task, widths=Widths(floor=0.25, round_to=4), kernel=False)


def by_macs(model: nn.Module) -> float:
    """Stands for a runtime: additive in the layers, so the table is nearly right. No clock is read in a test."""
    return 0.5 + count_macs(model, (torch.zeros(2, 1, 8, 8),)) / 1e5


def test_savings_add_up_and_a_skipped_branch_hides_what_lies_in_it() -> None:
    blocks = BlockLatency(SPACE, TABLE)
    assert blocks({"width:a": 16, "depth:b": 1}) == 10.0
    assert blocks({"width:a": 8, "depth:b": 1}) == pytest.approx(8.0)
    assert blocks({"width:a": 8, "depth:b": 0}) == blocks({"width:a": 16, "depth:b": 0}) == pytest.approx(5.0)


@pytest.mark.parametrize("product", [False, True])
def test_the_correction_finds_out_whether_savings_add_up_or_multiply(product: bool) -> None:
    space = Space((Ordinal("width:a", (8, 16)), Ordinal("width:b", (8, 16)), Ordinal("depth:c", (0, 1))))
    table = LatencyTable(10.0, {"width:a": {8: 6.0, 16: 10.0}, "width:b": {8: 5.0, 16: 10.0}, "depth:c": {0: 8.0, 1: 10.0}})
    bare = BlockLatency(space, table)
    everything = [space.values(architecture) for architecture in space.enumerate()]
    truth = [3.0 + 2.0 * float(bare.predictors(values)[2 if product else 1]) for values in everything]
    blocks = BlockLatency(space, table, Timed(tuple(everything), tuple(truth)))
    assert blocks.error == pytest.approx(0.0, abs=1e-9)
    assert [blocks(values) for values in everything] == pytest.approx(truth)
    assert blocks.weights == pytest.approx([3, 0, 2] if product else [3, 2, 0], abs=1e-6)
    assert BlockLatency(space, table, Timed(tuple(everything[:3]), tuple(truth[:3]))).error is None


def test_a_table_tells_subnets_that_it_never_saw(space: Elastic) -> None:
    blocks = measure_blocks(space, by_macs, seed=0)
    assert blocks.error is not None and blocks.error < 0.2
    narrow = {**space.space.values(space.largest), "width:stem.0": 8}
    assert blocks(narrow) == pytest.approx(by_macs(space.subnet(narrow)), rel=0.25)
    assert blocks(space.space.values(space.smallest)) < blocks(narrow) < blocks(space.space.values(space.largest))


def test_what_was_measured_before_is_not_measured_again(space: Elastic) -> None:
    kept, calls = list[BlockLatency](), list[int]()

    def stops(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return by_macs(model)

    with pytest.raises(KeyboardInterrupt):
        measure_blocks(space, stops, keep=kept.append, seed=0)
    known = BlockLatency.from_json(space.space, kept[-1].to_json())
    assert known == kept[-1]
    calls.clear()
    again = measure_blocks(space, lambda model: calls.append(1) or by_macs(model), known=known, seed=0)
    assert len(calls) == timings(space.space) - 4  # of six timings one was the whole model, one was lost
    assert again == measure_blocks(space, by_macs, seed=0)
    assert len(again.timed.ms) == TIMED


def test_a_table_that_is_none_is_told() -> None:
    with pytest.raises(ArtifactError, match="table and timed"):
        BlockLatency.from_json(SPACE, '{"table": 3}')
