from collections.abc import Callable

import numpy as np
import pytest

from paredown.core.budget import Limit
from paredown.core.errors import MeasurementError
from paredown.core.measurement import Measurement
from paredown.measure.interleave import Round, interleaved
from paredown.measure.latency import PairedLatency, Timed, paired_latency


def rounds(a: Callable[[], object], b: Callable[[], object]) -> Timed:
    """Sides that are the same in every round."""
    return lambda pairs: interleaved(a, b, pairs, 3)


def test_ratio_is_candidate_over_baseline(machine) -> None:
    result = paired_latency(rounds(machine.callable("a", 4_000_000), machine.callable("b", 2_000_000)), device="here")
    assert (result.a.value, result.b.value, result.ratio.value) == (4.0, 2.0, 0.5)
    assert (result.a.unit, result.ratio.unit, result.ratio.n, result.ratio.device) == ("ms", "x", 54, "here")
    assert result.ratio.low == result.ratio.high == 0.5


def test_an_interval_knows_that_the_pairs_of_a_round_share_their_luck() -> None:
    random = np.random.default_rng(0)

    def lucky(pairs: int) -> Round:
        return Round(np.stack([np.full(pairs, 4.0), np.full(pairs, 2 * np.exp(0.05 * random.standard_normal()))]))

    ratio = paired_latency(lucky).ratio
    assert 0.02 < (ratio.upper - ratio.lower) / ratio.value < 0.12
    assert ratio.lower <= 0.5 <= ratio.upper


def test_an_outlier_does_not_move_the_ratio(machine) -> None:
    a, quick = machine.callable("a", 2_000_000), machine.callable("b", 1_000_000)

    def b() -> None:
        quick()
        if machine.calls.count("b") % 10 == 0:
            machine.now += 50_000_000

    ratio = paired_latency(rounds(a, b)).ratio
    assert ratio.value == 0.5
    assert ratio.lower <= 0.5 <= ratio.upper < 1


def test_fewer_than_50_pairs_is_an_error_with_its_remedy() -> None:
    with pytest.raises(MeasurementError, match="at least 50, got 49; write pairs=50"):
        paired_latency(rounds(print, print), pairs=49)


def test_more_pairs_are_timed_while_the_interval_is_wide() -> None:
    random = np.random.default_rng(0)

    def timed(by: float) -> Measurement:
        def disturbed(pairs: int) -> Round:
            return Round(np.array([[4.0], [2.0]]) * np.exp(by * random.standard_normal((2, pairs))))

        return paired_latency(disturbed).ratio

    quiet, loud, uproar = (timed(by) for by in (0.02, 0.15, 3.0))
    assert quiet.n == 54 and 54 < loud.n <= 216 and uproar.n == 216
    assert loud.upper - loud.value <= 0.06 * loud.value


def test_load_is_what_others_took_of_all_rounds_together() -> None:
    others = iter([0.4, -0.1, 0.0, 0.0, 0.0, 0.0])
    result = paired_latency(lambda pairs: Round(np.ones((2, pairs)), next(others), 0.25))
    assert result.ratio.load == result.a.load == pytest.approx(0.3 / 1.5)


def test_of_a_few_hundredths_of_a_second_no_load_is_told() -> None:
    assert paired_latency(lambda pairs: Round(np.ones((2, pairs)), 0.02, 0.03)).ratio.load == 0


def test_a_latency_is_timed_until_it_is_told_from_a_limit() -> None:
    def around(limit: Limit | None) -> PairedLatency:
        random = np.random.default_rng(0)

        def disturbed(pairs: int) -> Round:
            return Round(np.array([[4.0], [2.0]]) * np.exp(0.05 * random.standard_normal((2, pairs))))

        return paired_latency(disturbed, limit=limit)

    at_once, near = around(None).ratio, around(Limit(0.505, relative=True)).ratio
    assert at_once.n == around(Limit(0.6, relative=True)).ratio.n == 54 < near.n
    assert near.upper - near.lower < at_once.upper - at_once.lower
    assert around(Limit(2.5, relative=False)).b.n == 54 < around(Limit(2.01, relative=False)).b.n
