"""Noisy results: what is expected of them, and that the best is chosen by that."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import pytest

from paredown.nas.dimensions import Choice, Int
from paredown.nas.evaluators.evaluator import Job, Outcome, Values
from paredown.nas.evaluators.table import Table
from paredown.nas.expected import expected, shrunk
from paredown.nas.outcome import SearchResult
from paredown.nas.problem import Limit, Objective, Problem, Result, Source
from paredown.nas.search import search
from paredown.nas.space import Space
from paredown.nas.strategies.random import Random
from paredown.nas.strategies.ridge import Scale
from tests.nas.toys import toy

DEVIATION = 2.0


def truth(values: Values) -> float:
    return 80 + 4 * (values["a"] == "y") + float(values["b"]) - 0.5 * float(values["c"])


@dataclasses.dataclass(frozen=True)
class Noisy:
    """The truth and noise of a known deviation, drawn anew for each architecture."""

    said: float = DEVIATION
    source: Source = "function"
    fidelities: tuple[float, ...] = (1.0,)
    name: str = "noisy"

    def evaluate(self, job: Job) -> Outcome:
        random = np.random.default_rng([job.seed, *job.architecture])
        metrics = {"accuracy": truth(job.values) + DEVIATION * float(random.standard_normal())}
        return Outcome(metrics, 1.0, {"accuracy": self.said} if self.said else {})


@functools.cache
def found(said: float, seed: int) -> SearchResult:
    return search(toy(), Noisy(said), strategy=Random, effort=60, seed=seed)


def test_what_is_chosen_by_expectation_is_truly_better_than_the_luckiest() -> None:
    gain = [truth(found(DEVIATION, seed).best.values) - truth(found(0.0, seed).best.values) for seed in range(20)]
    assert np.mean(gain) > 0.3


def test_the_measured_value_stays_beside_what_is_expected() -> None:
    best = found(DEVIATION, 0).best
    assert best.validation["accuracy"] in {r.metrics["accuracy"] for r in found(DEVIATION, 0).history}
    assert best.expected["accuracy"] != best.validation["accuracy"]
    assert best.expected["accuracy"] == max(c.expected["accuracy"] for c in found(DEVIATION, 0).candidates)
    assert SearchResult.from_json(found(DEVIATION, 0).to_json()) == found(DEVIATION, 0)


def test_exact_results_and_few_results_stay_as_measured() -> None:
    exact = found(0.0, 0)
    assert exact.best.validation["accuracy"] == max(r.metrics["accuracy"] for r in exact.history)
    assert exact.best.expected == {}
    noisy = found(DEVIATION, 0)
    few = list(noisy.history[:15])
    assert expected(Problem(noisy.space), few) == few


def test_failed_results_and_exact_metrics_are_left_alone() -> None:
    problem = Problem(toy(), (Objective("accuracy", maximize=True),), (Limit("cost", high=3.0),))
    results = [dataclasses.replace(r, metrics={**r.metrics, "cost": 2.0}) for r in found(DEVIATION, 1).history]
    results.insert(3, Result((0, 0, 0), 1.0, {}, failed="died"))
    worth = expected(problem, results)
    assert worth[3] == results[3]
    assert {r.metrics["cost"] for r in worth if not r.failed} == {2.0}
    assert [r.deviation for r in worth] == [r.deviation for r in results]


@pytest.mark.parametrize(("deviation", "stays"), [(0.0, True), (1e-6, True), (1e3, False)])
def test_a_value_is_drawn_to_the_regression_as_far_as_noise_explains_it(deviation: float, stays: bool) -> None:
    random = np.random.default_rng(0)
    rows = np.concatenate([np.ones((40, 1)), random.standard_normal((40, 3))], axis=1).astype(np.float32)
    measured = rows[:, 1] * 2.0 + random.standard_normal(40)
    drawn = shrunk(rows, measured, np.full(40, deviation))
    assert np.allclose(drawn, measured, atol=1e-5) is stays
    if not stays:  # all of the rest is noise: what is left is the regression
        assert np.corrcoef(drawn, rows[:, 1])[0, 1] > 0.99


def test_a_scale_goes_back_and_tells_its_slope() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0, 30.0])
    scale = Scale.of(values)
    assert np.allclose(scale.backward(scale.forward(values)), values)
    step = 1e-6
    assert np.allclose((scale.forward(values + step) - scale.forward(values - step)) / (2 * step), scale.slope(values), rtol=1e-4)


def test_a_table_of_percentages_knows_the_deviation_of_a_proportion() -> None:
    space = Space((Choice("op", ("a", "b")), Int("n", 0, 1)))
    column: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {"accuracy": np.array([50.0, 90.0, 0.0, 100.0])}
    table = Table(space, {1.0: column}, {1.0: np.ones(4)}, {}).sampled("accuracy", 100)
    outcome = table.evaluate(Job((0, 1), {"op": "a", "n": 1}))
    assert outcome.deviation == {"accuracy": pytest.approx(3.0)}
    assert table.evaluate(Job((1, 1), {"op": "b", "n": 1})).deviation == {"accuracy": 0.0}
