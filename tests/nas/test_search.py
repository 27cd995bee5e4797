"""A search from end to end: workers that die, runs that resume, results as data, and the replay on NAS-Bench-201."""

import dataclasses
import functools
import json
import pathlib
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from paredown.core.errors import ArtifactError, OutputError, RecipeError, SearchError
from paredown.nas import cell201
from paredown.nas.evaluators.evaluator import FunctionEvaluator, Job, Values
from paredown.nas.evaluators.executor import Processes
from paredown.nas.evaluators.table import Column, Table, cell201_table
from paredown.nas.outcome import SearchResult
from paredown.nas.page import search_report
from paredown.nas.problem import Limit, Objective, Result
from paredown.nas.search import search
from paredown.nas.strategies.local_search import LocalSearch
from paredown.nas.strategies.ppo import PPO
from paredown.nas.strategies.random import Random
from paredown.nas.strategies.regularized_evolution import RegularizedEvolution
from paredown.nas.strategies.reinforce import Reinforce
from paredown.nas.strategies.strategy import StrategyFactory
from paredown.nas.strategies.surrogate import Surrogate
from paredown.render.search import render_search
from tests.nas.toys import Noted, always_dies, broken, score, toy

BOTH = (Objective("accuracy", maximize=True), Objective("cost"))


def without_seconds(result: SearchResult) -> list[tuple[object, ...]]:
    return [(r.architecture, dict(r.metrics), r.failed) for r in result.history]


def done(folder: pathlib.Path) -> int:
    return len(list(folder.glob("done*")))


def test_the_default_finds_the_best_of_a_small_space() -> None:
    found = search(toy(), score, effort="80 evaluations")
    assert found.best.values == {"a": "y", "b": 5, "c": 2}
    assert found.best.validation["accuracy"] == 93
    assert (found.source, found.feasible, len(found.history)) == ("function", True, 80)
    values = [point.best for point in found.curve]
    assert values == sorted(values, key=float)  # type: ignore[arg-type]  # the curve never falls
    assert found.shared_choices(5)["a"]["y"] >= 0.6


def test_fronts_keep_their_limits_and_trade_one_objective_for_the_other() -> None:
    found = search(toy(), score, effort=60, objectives=BOTH, limits=(Limit("cost", high=5.0),))
    points = [(each.validation["accuracy"], each.validation["cost"]) for each in found.front]
    assert len(points) >= 3
    assert points == sorted(points, reverse=True)
    assert all(cost <= 5 for _, cost in points)


def test_limits_that_nothing_keeps_are_said_to_be_broken() -> None:
    found = search(toy(), score, effort=20, limits=(Limit("cost", high=0.5),))
    assert (found.feasible, found.front) == (False, ())
    assert found.best.validation["cost"] == min(r.metrics["cost"] for r in found.history)
    assert all(point.best is None for point in found.curve)


def test_a_result_goes_through_json() -> None:
    found = search(toy(), score, effort=20, objectives=BOTH, strategy=RegularizedEvolution)
    assert SearchResult.from_json(found.to_json()) == found
    with pytest.raises(SearchError, match="its own JSON"):
        SearchResult.from_json('{"best": 3}')


def test_a_killed_workers_job_is_tried_again_and_nothing_is_lost(tmp_path: pathlib.Path) -> None:
    evaluator = Noted(str(tmp_path), kills=True)
    with Processes(evaluator, workers=2) as executor:
        found = search(toy(), executor, effort=24, strategy=Random)
    assert len(found.history) == 24
    assert not any(result.failed for result in found.history)
    assert len(list(tmp_path.glob("killed*"))) == sum(r.architecture[1] == 5 for r in found.history) >= 1
    serial = search(toy(), score, effort=24, strategy=Random)
    assert without_seconds(found) == without_seconds(serial)


def test_a_search_whose_workers_were_killed_goes_on_from_its_store(tmp_path: pathlib.Path) -> None:
    (folder := tmp_path / "notes").mkdir()
    for effort in (14, 24):
        with Processes(Noted(str(folder), kills=True), workers=2) as executor:
            found = search(toy(), executor, effort=effort, strategy=Random, store=tmp_path / "run.jsonl")
        assert done(folder) == effort  # none is evaluated twice
    assert len(list(folder.glob("killed*"))) >= 2
    assert without_seconds(found) == without_seconds(search(toy(), score, effort=24, strategy=Random))


def test_a_job_that_always_kills_its_worker_fails_alone() -> None:
    with Processes(always_dies, workers=1, attempts=2) as executor, pytest.raises(SearchError, match="worker died 2 times"):
        search(toy(), executor, effort=1, strategy=Random)


def test_a_stopped_search_resumes_from_its_store(tmp_path: pathlib.Path) -> None:
    store = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        search(toy(), Noted(str(tmp_path), stops_after=12), effort=30, store=store)
    assert done(tmp_path) == 12
    with store.open("a") as stream:
        stream.write('{"architecture": [0, ')  # cut off in the middle of a line
    found = search(toy(), Noted(str(tmp_path)), effort=30, store=store)
    assert done(tmp_path) == 30
    (tmp_path / "other").mkdir()
    whole = search(toy(), Noted(str(tmp_path / "other")), effort=30)
    assert found.history == whole.history
    again = search(toy(), Noted(str(tmp_path)), effort=30, store=store)
    assert (done(tmp_path), again.history) == (30, whole.history)
    assert len(store.read_text().splitlines()) == 31
    with pytest.raises(ArtifactError, match="belongs to one search"):
        search(toy(), Noted(str(tmp_path)), effort=30, seed=1, store=store)


def test_what_cannot_work_is_told() -> None:
    with pytest.raises(SearchError, match="no such operator"):
        search(toy(), broken, effort=3)
    with pytest.raises(SearchError, match="names a metric"):
        search(toy(), score, effort=3, objectives=(Objective("latency_ms"),))
    with pytest.raises(SearchError, match="must pickle"):
        Processes(lambda values: 1.0)


@pytest.fixture(scope="module")
def table(shared_data: ModuleType) -> Table:
    core = shared_data.nasbench201()
    operators = np.stack([core[name] for name in cell201.NAMES], axis=1)
    second = core["c10_sec_per_epoch"].astype(float)
    columns = {0.06: {"accuracy": core["c10_valid_e12"]}, 1.0: {"accuracy": core["c10_valid_e200"]}}
    return cell201_table(
        operators, columns, {0.06: 12 * second, 1.0: 200 * second}, {"test_accuracy": core["c10_test_e200"]}, "c10"
    )


@pytest.mark.parametrize(
    ("strategy", "published"),
    [
        (functools.partial(Random, unique=False), 93.85),
        (functools.partial(Reinforce, unique=False), 93.94),
        (functools.partial(PPO, unique=False), 94.02),
        (functools.partial(RegularizedEvolution, unique=False), 94.07),
        (LocalSearch, 94.29),
    ],
)
def test_the_official_replay_comes_out_as_published(table: Table, strategy: StrategyFactory, published: float) -> None:
    """50 seeds here, 200 in benchmarks/results/nas201.csv; the spread of one run is 0.15 to 0.3."""
    short = Table(table.space, {0.06: table.columns[0.06]}, {0.06: table.seconds[0.06]}, table.test_columns, "c10")
    tests = [
        search(short.space, short, strategy=strategy, effort="20000 s", seed=s).best.test["test_accuracy"] for s in range(50)
    ]
    assert np.mean(tests) == pytest.approx(published, abs=0.15)


def test_the_default_begins_with_large_cells_where_the_evaluator_knows_them(table: Table) -> None:
    alone = dataclasses.replace(table, size_of=None)
    known, given, unknown = (
        search(table.space, evaluator, strategy=strategy, effort=16).history
        for evaluator, strategy in (
            (table, Surrogate),
            (alone, functools.partial(Surrogate, capacity=cell201.parameters)),
            (alone, Surrogate),
        )
    )
    assert known == given
    large, any_ = (np.mean([cell201.parameters(r.architecture) for r in history]) for history in (known, unknown))
    assert large > 1.2 * any_


def test_a_table_is_never_presented_as_training(table: Table) -> None:
    found = search(table.space, table, strategy=Surrogate, effort="20000 s")
    assert found.source == found.best.source == "table"
    assert {result.source for result in found.history} == {"table"}
    assert sum(result.seconds for result in found.history) <= 20_000
    assert found.best.fidelity == 1.0  # the last third went into 200-epoch validation
    assert "test_accuracy" in found.best.test
    assert not any("test_accuracy" in result.metrics for result in found.history)
    assert json.loads(found.to_json())["source"] == "table"


def test_candidates_are_all_that_was_judged_best_first_and_tests_are_of_the_front_alone(table: Table) -> None:
    found = search(table.space, table, strategy=functools.partial(Random, unique=False), effort=40)
    assert [each.architecture for each in found.candidates[:1]] == [found.best.architecture]
    values = [each.validation["accuracy"] for each in found.candidates]
    assert values == sorted(values, reverse=True)
    judged = {result.architecture for result in found.history if result.fidelity == max(table.fidelities)}
    assert {each.architecture for each in found.candidates} == judged and len(judged) > 5
    assert [each.architecture for each in found.candidates if each.test] == [found.front[0].architecture]
    assert "source: table" in str(found)
    assert f"test: test_accuracy {found.best.test['test_accuracy']:.4g}" in str(found)


def test_candidates_outside_the_limits_come_last() -> None:
    found = search(toy(), score, effort=30, limits=(Limit("cost", high=5.0),))
    inside = [each.validation["cost"] <= 5 for each in found.candidates]
    assert inside == sorted(inside, reverse=True)
    assert 0 < sum(inside) < len(inside)


def test_a_file_that_is_no_store_is_left_alone(tmp_path: pathlib.Path) -> None:
    notes = tmp_path / "notes.txt"
    for text in ("my precious notes", "line one\nline two\n", '{"a":\n 1}\n', "[1]\n"):
        notes.write_text(text)
        with pytest.raises(ArtifactError, match="store"):
            search(toy(), score, effort=3, store=notes)
        assert notes.read_text() == text
    with pytest.raises(ArtifactError, match="a store is a file"):
        search(toy(), score, effort=3, store=tmp_path)


def test_a_line_that_is_broken_in_the_middle_loses_nothing(tmp_path: pathlib.Path) -> None:
    store = tmp_path / "store.jsonl"
    search(toy(), score, effort=6, store=store)
    lines = store.read_text().splitlines(keepends=True)
    spoilt = "".join([*lines[:3], lines[3][:10] + "\n", *lines[4:]])
    store.write_text(spoilt)
    with pytest.raises(ArtifactError, match="holds results, one a line"):
        search(toy(), score, effort=6, store=store)
    assert store.read_text() == spoilt
    store.write_text("".join(lines) + lines[1][:10])  # cut off while it was written
    assert len(search(toy(), score, effort=6, store=store).history) == 6


def test_another_evaluator_of_the_same_name_has_another_store(tmp_path: pathlib.Path) -> None:
    store = tmp_path / "store.jsonl"
    search(toy(), functools.partial(constant, value=1.0), effort=2, store=store)
    with pytest.raises(ArtifactError, match="same space, evaluator and seed"):
        search(toy(), functools.partial(constant, value=2.0), effort=2, store=store)


def constant(_values: Values, value: float = 1.0) -> float:
    return value


def test_a_metric_that_is_not_there_is_told_at_once() -> None:
    calls: list[Values] = []

    def counted(values: Values) -> dict[str, float]:
        calls.append(values)
        return score(values)

    with pytest.raises(SearchError, match="names a metric of the evaluator, got kost"):
        search(toy(), counted, effort=50, limits=(Limit("kost", high=1.0),), strategy=Random)
    assert len(calls) == 1


def test_reinforce_ends_where_nothing_is_left_of_the_effort() -> None:
    found = search(toy(), Table(toy(), *slow()), effort="5.5 s", strategy=Reinforce, limits=(Limit("cost", high=4.0),))
    assert len(found.history) == 5


def slow() -> tuple[dict[float, dict[str, Column]], dict[float, Column], dict[str, Column]]:
    """Columns of the toy space, a second each."""
    space = toy()
    rows = [score(space.values(each)) for each in space.enumerate()]
    return {1.0: {name: np.array([row[name] for row in rows]) for name in rows[0]}}, {1.0: np.ones(len(rows))}, {}


def test_a_budget_in_seconds_ends_where_every_evaluation_fails() -> None:
    def failing(_values: Values) -> float:
        time.sleep(0.02)
        raise RuntimeError("broken")

    with pytest.raises(SearchError, match="broken"):
        search(toy(), failing, effort="0.2 s", strategy=Random)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objectives": ("cost",)}, "objectives must be a tuple of Objective"),
        ({"limits": (3,)}, "limits must be a tuple of Limit"),
        ({"strategy": "ppo"}, "strategy must be a class of strategies"),
        ({"strategy": functools.partial(PPO, foo=1)}, "a strategy is made of the problem and its own options"),
        ({"strategy": lambda problem: 3}, "a strategy asks and is told"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
    ],
)
def test_bad_input_is_told_before_anything_runs(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((SearchError, RecipeError), match=message):
        search(toy(), score, effort=3, **wrong)
    with pytest.raises(SearchError, match="a search needs a Space"):
        search([1], score, effort=3)  # type: ignore[arg-type]  # the point


def test_a_store_that_cannot_be_written_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a store must be a file that can be written to"):
        search(toy(), score, effort=3, store=tmp_path / "file" / "run.jsonl")


@pytest.mark.parametrize("ends", [{}, {"high": float("nan")}, {"low": 3.0, "high": 1.0}, {"high": "3"}])
def test_a_limit_has_an_end(ends: dict[str, Any]) -> None:
    with pytest.raises(SearchError, match="a limit of cost needs finite numbers"):
        Limit("cost", **ends)


def test_a_limit_of_zero_tells_near_from_far() -> None:
    limit = Limit("cost", high=0.0)
    assert 0 < limit.violation({"cost": 0.001}) < limit.violation({"cost": 1.0}) < limit.violation({"cost": 1000.0}) < 1e6


def test_one_objective_or_limit_need_not_stand_in_a_tuple() -> None:
    found = search(toy(), score, effort=5, objectives=Objective("cost"), limits=Limit("cost", high=9.0))  # type: ignore[arg-type]
    assert found.objectives == (Objective("cost"),) and found.limits == (Limit("cost", high=9.0),)


def test_an_interrupted_batch_does_not_answer_the_next_one(tmp_path: pathlib.Path) -> None:
    def interrupt(_result: Result) -> None:
        raise KeyboardInterrupt

    jobs = [Job(a, toy().values(a)) for a in ((0, 0, 0), (1, 0, 0), (1, 3, 3), (1, 1, 3))]
    with Processes(score, workers=2) as processes:
        with pytest.raises(KeyboardInterrupt):
            processes.run(jobs[:2], interrupt)
        found = processes.run(jobs[2:], lambda _result: None)
    assert [result.architecture for result in found] == [(1, 3, 3), (1, 1, 3)]


class Untestable(FunctionEvaluator):
    """An evaluator whose test data can't be read."""

    def test(self, _values: Values) -> dict[str, float]:
        raise OSError("no such file")


def test_a_search_is_not_lost_where_its_test_fails() -> None:
    found = search(toy(), Untestable(score), effort=5)
    assert found.front and not found.best.test and found.best.test_failed == "OSError: no such file"
    assert "no test: OSError" in str(found) and "on test data: OSError: no such file" in render_search(search_report(found))
    assert SearchResult.from_json(found.to_json()).best == found.best
