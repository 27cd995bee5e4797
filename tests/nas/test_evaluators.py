"""Tables, proxies, training and halving: what they return, and that they leave models as they were."""

import dataclasses
import functools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paredown.core.effort import Effort
from paredown.core.errors import ArtifactError, SearchError
from paredown.core.steps import Training
from paredown.nas import cell201
from paredown.nas.cell201_network import build
from paredown.nas.dimensions import Int
from paredown.nas.evaluators.evaluator import FunctionEvaluator, Job, Outcome, Values, as_evaluator, run_job
from paredown.nas.evaluators.halving import Rung, successive_halving
from paredown.nas.evaluators.proxies.evaluator import ProxyEvaluator, proxy_score
from paredown.nas.evaluators.proxies.naswot import naswot
from paredown.nas.evaluators.proxies.synflow import synflow
from paredown.nas.evaluators.table import Table, cell201_table, from_nats_bench
from paredown.nas.evaluators.training import Data, Predict, TrainingEvaluator, mean_metric, shortened
from paredown.nas.space import Space
from paredown.nas.symmetry import OPERATORS
from paredown.task.metric import Metric
from paredown.train.seeds import seeded
from tests.conftest import make_small_resnet
from tests.nas.jobs import coloured, data, images, small_network
from tests.nas.toys import broken, score, toy

CONVOLUTIONS = dict.fromkeys(cell201.NAMES, "nor_conv_3x3")
POOLS = dict.fromkeys(cell201.NAMES, "avg_pool_3x3")


class FakeApi:
    """The four calls of the official API, over made-up numbers that depend on the cell alone; cells in reversed order."""

    cells = tuple(cell201.to_string(cell201.space().values(a)) for a in reversed(list(cell201.space().enumerate())))

    def __len__(self) -> int:
        return len(self.cells)

    def arch(self, index: int) -> str:
        return self.cells[index]

    def get_more_info(
        self, index: int, dataset: str, iepoch: Any = None, hp: str = "12", is_random: bool = True
    ) -> dict[str, Any]:
        assert not is_random
        convolutions = self.cells[index].count("nor_conv")
        shift = {"cifar10-valid": 0.0, "cifar10": 0.5}[dataset]
        info = {
            "train-all-time": 2.0 * int(hp),
            "valid-per-time": 1.0,
            "valid-accuracy": 10.0 * convolutions + int(hp) / 200 + shift,
        }
        return {**info, "test-accuracy": 10.0 * convolutions + shift}

    def get_cost_info(self, index: int, dataset: str, hp: str = "12") -> dict[str, Any]:
        return {"params": 0.1 * self.cells[index].count("nor_conv"), "flops": 5.0}


def test_the_official_api_becomes_a_table_and_keeps_validation_and_test_apart() -> None:
    table = from_nats_bench(FakeApi(), "cifar10")
    assert (table.source, table.fidelities) == ("table", (0.06, 1.0))
    values = cell201.from_string("|nor_conv_1x1~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|")
    short, full = (table.evaluate(Job((), values, fidelity)) for fidelity in table.fidelities)
    assert short.metrics == {"accuracy": 20.06, "params": 2e5, "macs": 5e6}
    assert full.metrics["accuracy"] == 21.0
    assert (short.seconds, full.seconds) == (25.0, 401.0)
    assert table.test(values) == {"test_accuracy": 20.5}


def test_a_table_gives_the_row_of_each_cell(shared_data: ModuleType) -> None:
    core = shared_data.nasbench201()
    operators = np.stack([core[name] for name in cell201.NAMES], axis=1)
    table = cell201_table(operators, {1.0: {"accuracy": core["c10_valid_e200"]}}, {1.0: core["c10_sec_per_epoch"]}, {}, "c10")
    for row in range(0, 15_625, 401):
        values = {name: OPERATORS[int(core[name][row])] for name in cell201.NAMES}
        outcome = table.evaluate(Job((), values))
        assert outcome.metrics["accuracy"] == core["c10_valid_e200"][row]
        assert outcome.seconds == core["c10_sec_per_epoch"][row]
        assert cell201.parameters(tuple(operators[row])) == core["c10_params"][row]


def test_a_table_refuses_columns_that_do_not_fit() -> None:
    space = Space((Int("a", 0, 4),))
    with pytest.raises(SearchError, match="one value an architecture"):
        Table(space, {1.0: {"accuracy": np.zeros(4)}}, {1.0: np.zeros(5)}, {})
    with pytest.raises(SearchError, match="each of the 15,625 cells once"):
        cell201_table(np.zeros((15_625, 6)), {}, {}, {}, "twice the same")


def test_a_function_is_an_evaluator_and_its_errors_are_results() -> None:
    job = Job((1, 5, 2), toy().values((1, 5, 2)))
    assert run_job(as_evaluator(score), job).metrics == {"accuracy": 93.0, "cost": 6.0}
    assert run_job(as_evaluator(lambda values: float(values["b"]), "error"), job).metrics == {"error": 5.0}
    failed = run_job(as_evaluator(broken), job)
    assert (failed.metrics, failed.failed) == ({}, "RuntimeError: no such operator")
    assert run_job(FunctionEvaluator(lambda _: math.nan), job).failed.startswith("accuracy must be finite, got nan")
    with pytest.raises(SearchError, match="a function of the values"):
        as_evaluator(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("proxy", ["params", "macs", "naswot", "synflow", "jacov", "zen"])
def test_proxies_are_finite_repeatable_and_leave_the_model_alone(proxy: Any) -> None:
    model, inputs = make_small_resnet(), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    values = [proxy_score(proxy, model, inputs) for _ in range(2)]
    assert math.isfinite(values[0])
    assert values[0] == values[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_synflow_is_the_sum_over_paths_and_naswot_sees_how_samples_differ() -> None:
    linear = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    paths = (linear[1].weight.abs() @ linear[0].weight.abs()).sum()  # each path counts once per layer
    assert synflow(linear, torch.zeros(2, 3)) == pytest.approx(math.log(2 * paths.item()), abs=1e-6)
    relu = nn.Sequential(nn.Linear(4, 64), nn.ReLU())
    alike, apart = torch.ones(6, 4), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert naswot(relu, alike) == -math.inf
    assert naswot(relu, apart) > 0


def test_proxies_prefer_convolutions_to_pooling() -> None:
    evaluator = ProxyEvaluator(small_network, images, ("params", "macs", "naswot", "synflow", "zen"))
    strong, weak = (run_job(evaluator, Job((), values)) for values in (CONVOLUTIONS, POOLS))
    assert strong.source == "proxy"
    assert all(strong.metrics[name] > weak.metrics[name] for name in strong.metrics)
    with pytest.raises(SearchError, match="known by name"):
        ProxyEvaluator(small_network, images, ("luck",))  # type: ignore[arg-type]


def evaluator() -> TrainingEvaluator:
    training = Training(effort=Effort(12, "epochs"), learning_rate=0.1)
    return TrainingEvaluator(small_network, data, training, fidelities=(0.1, 1.0))


def test_training_evaluates_by_validation_and_more_fidelity_learns_more() -> None:
    made = evaluator()
    short, full = (run_job(made, Job((), CONVOLUTIONS, fidelity, seed=1)) for fidelity in made.fidelities)
    assert full.source == "training" and not full.failed
    assert full.metrics["accuracy"] > short.metrics["accuracy"] + 0.2
    assert full.metrics["accuracy"] > 0.6


def test_the_winner_is_a_plain_module_that_scores_as_the_search_said() -> None:
    made = evaluator()
    result = run_job(made, Job((), CONVOLUTIONS, 0.1, seed=3))
    model = made.trained(CONVOLUTIONS, data(), 0.1, seed=3)
    assert mean_metric(model, data().validation) == result.metrics["accuracy"]


def test_test_metrics_are_those_of_the_winner_trained_in_full() -> None:
    made = TrainingEvaluator(small_network, data, Training(effort=Effort(2, "epochs"), learning_rate=0.1))
    model = made.module(CONVOLUTIONS)
    assert made.test(CONVOLUTIONS)["test_accuracy"] == mean_metric(model, data().validation)  # the same batches here
    assert dataclasses.replace(made, data=untested).test(CONVOLUTIONS) == {}


def untested() -> Data:
    return dataclasses.replace(data(), test=None)


def drawn() -> Data:
    """Another split at every call that isn't seeded."""
    x, y = (torch.cat(parts) for parts in zip(*coloured(), strict=True))
    order = torch.randperm(len(x))
    train, validation, test = ([(x[i], y[i])] for i in order.split(64))
    SPLITS.append((set(order[:64].tolist()), set(order[128:].tolist())))
    return Data(train, validation, test)


SPLITS: list[tuple[set[int], set[int]]] = []


def zeros(_model: nn.Module, _task: object) -> Predict:
    return lambda inputs: torch.eye(10)[torch.zeros(len(inputs), dtype=torch.long)]


def test_test_metrics_are_of_what_was_not_trained_on_and_finished_as_in_the_search() -> None:
    made = TrainingEvaluator(small_network, drawn, Training(effort=Effort(1, "epochs")), finish=zeros)
    result, found = run_job(made, Job((), CONVOLUTIONS, seed=5)), made.test(CONVOLUTIONS, seed=5)
    assert not result.failed and SPLITS[0] == SPLITS[1] and SPLITS[0][0].isdisjoint(SPLITS[0][1])
    with seeded(5):
        test = drawn().test
    assert test is not None and found["test_accuracy"] == pytest.approx(float((test[0][1] == 0).double().mean()))  # type: ignore[index]
    assert "0x" not in made.name


def numbers() -> Data:
    """Targets (batch, 1): the mean of the inputs."""
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [(part, part.mean((1, 2, 3))[:, None]) for part in x.split(16)]
    return Data(batches, batches)


def mean_network(_values: Values) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 1))


def test_a_regression_needs_a_loss_of_its_own() -> None:
    squares = Metric(lambda output, target: (output - target).square().mean(1), higher_is_better=False, name="mse")
    made = TrainingEvaluator(mean_network, numbers, Training(effort=Effort(30, "epochs"), learning_rate=0.1), metric=squares)
    refused = run_job(made, Job((), {}))
    assert "cross-entropy needs targets that are classes" in refused.failed
    found = run_job(dataclasses.replace(made, loss=nn.functional.mse_loss), Job((), {}))
    assert not found.failed and found.metrics["mse"] < 0.5 * float(torch.cat([y for _, y in numbers().validation]).var())


def test_a_fidelity_shortens_the_effort() -> None:
    assert shortened(Training(effort=Effort(200, "epochs")), 0.06).effort == Effort(12, "epochs")
    with pytest.raises(SearchError, match="share in"):
        shortened(Training(), 0)


def test_halving_hands_the_best_of_each_rung_to_the_next() -> None:
    space = toy()
    rough = functools.partial(lambda values: {"accuracy": -abs(float(values["b"]) - 5)})
    rungs = [Rung(rough, 48), Rung(score, 5), Rung(score, 1)]
    kept = successive_halving(space, list(space.enumerate()), rungs)
    assert [len(results) for results in kept] == [48, 5, 1]
    assert kept[-1][0].architecture == (1, 5, 2)
    assert {5, 4} <= {space.values(r.architecture)["b"] for r in kept[0]} <= {4, 5, 6}
    with pytest.raises(SearchError, match="no more than the one before"):
        successive_halving(space, [(0, 0, 0)], [Rung(score, 1), Rung(score, 2)])
    with pytest.raises(SearchError, match="evaluations that succeed"):
        successive_halving(space, [(0, 0, 0)], [Rung(broken, 1)])


def test_a_halving_that_was_stopped_goes_on_from_its_folder(tmp_path: Path) -> None:
    space, asked = toy(), tmp_path / "asked"

    def counted(values: Values) -> float:
        with asked.open("a") as stream:
            stream.write(".")
        return score(values)["accuracy"]

    everything, rungs = list(space.enumerate()), [Rung(counted, 7), Rung(score, 2)]
    first = successive_halving(space, everything, rungs, store=tmp_path / "halving")
    (tmp_path / "halving" / "rung-1.jsonl").unlink()
    again = successive_halving(space, everything, rungs, store=tmp_path / "halving")
    assert again[0] == first[0] and [r.metrics for r in again[1]] == [r.metrics for r in first[1]]
    assert len(asked.read_text()) == len(everything)
    with pytest.raises(ArtifactError, match="one search"):
        successive_halving(space, everything, rungs, store=tmp_path / "halving", seed=1)


def test_the_network_of_a_searched_cell_trains_one_step() -> None:
    model = build(POOLS, channels=4, cells=1)
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


class Stated:
    """An evaluator that says what it is given."""

    source, fidelities, name = "function", (1.0,), "stated"

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def evaluate(self, job: Job) -> Any:
        return self.outcome


def test_numbers_of_other_libraries_become_plain() -> None:
    metrics = {"accuracy": np.float32(0.5), "params": np.int64(3), "cost": torch.tensor(2.0)}
    found = run_job(Stated(Outcome(metrics, 1.0)), Job((0,), {}))  # type: ignore[arg-type]  # the point
    assert found.metrics == {"accuracy": 0.5, "params": 3.0, "cost": 2.0}
    assert all(type(value) is float for value in found.metrics.values())


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome({"accuracy": None}), Outcome({"accuracy": 1.0, "note": "good"}), Outcome({"accuracy": float("nan")}),  # type: ignore[dict-item]
        Outcome({"accuracy": 1.0}, float("nan")), Outcome({"accuracy": 1.0}, deviation={"accuracy": None}), 0.5,  # type: ignore[dict-item]
    ],
)  # fmt: skip
def test_what_is_no_number_makes_a_failed_result(outcome: Any) -> None:
    found = run_job(Stated(outcome), Job((0,), {}))
    assert found.failed and not found.metrics and found.seconds > 0


def test_seconds_that_nobody_states_are_measured() -> None:
    assert run_job(Stated(Outcome({"accuracy": 1.0})), Job((0,), {})).seconds > 0
    assert run_job(FunctionEvaluator(broken), Job((0,), {})).seconds > 0


def scaled(values: Any, k: float) -> float:
    return k


def test_functions_are_told_apart_by_what_they_hold() -> None:
    names = {FunctionEvaluator(functools.partial(scaled, k=k)).name for k in (1.0, 1.0, 100.0)}
    assert len(names) == 2
    assert len({FunctionEvaluator(f).name for f in (lambda v: 1.0, lambda v: 2.0)}) == 2
    training = TrainingEvaluator(functools.partial(build, channels=2), data)
    assert training.name != TrainingEvaluator(functools.partial(build, channels=4), data).name


def test_a_table_is_told_from_one_of_other_seconds_or_deviations() -> None:
    columns, seconds = {1.0: {"accuracy": np.linspace(50, 90, 5)}}, {1.0: np.ones(5)}
    table = Table(Space((Int("a", 0, 4),)), columns, seconds, {})
    assert table.name != table.sampled("accuracy", 100).name
    assert table.name != Table(table.space, columns, {1.0: np.full(5, 2.0)}, {}).name


def test_an_error_is_no_accuracy() -> None:
    metric = Metric(lambda output, target: (output.argmax(1) != target).float(), higher_is_better=False, name="error")
    evaluator = TrainingEvaluator(small_network, data, Training(effort=Effort(1, "steps")), metric=metric)
    outcome = evaluator.evaluate(Job((), CONVOLUTIONS))
    assert set(outcome.metrics) == {"error", "params"} and set(outcome.deviation) == {"error"}


class Branches(nn.Module):
    """Two inputs, activations by functions, a batch norm and a linear layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(6, 8), nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.gelu(self.norm(self.one(x).relu() + self.two(y))))


class Tokens(nn.Module):
    """Inputs: tokens (batch, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(20, 64), nn.Linear(64, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.table(tokens).mean(1).relu())


def test_proxies_take_several_inputs_and_activations_that_are_functions() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(8, 6), torch.randn(8, 4))
    for name in ("params", "macs", "naswot", "synflow", "jacov", "zen"):
        assert math.isfinite(proxy_score(name, Branches(), inputs)), name  # type: ignore[arg-type]  # a Literal
    layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[2](self.layers[0](x).relu())

    assert naswot(layers, inputs[0]) == naswot(Functions(), inputs[0]) > 0


class Weighted(nn.Module):
    """Activations of parameters, as fusion weights have them, beside one of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.weights, self.layer = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(8)), nn.Linear(6, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu() * self.scale.relu() + self.weights.relu().sum()


def test_naswot_looks_at_activations_of_samples_alone() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(8, 6), Weighted()
    assert naswot(model, x) == naswot(nn.Sequential(model.layer, nn.ReLU()), x)


def test_proxies_that_change_inputs_refuse_tokens() -> None:
    tokens = torch.arange(20).view(4, 5)
    assert math.isfinite(proxy_score("naswot", Tokens(), tokens)) and proxy_score("params", Tokens(), tokens) > 0
    for name in ("synflow", "jacov", "zen"):
        with pytest.raises(SearchError, match=f"{name} changes its inputs"):
            proxy_score(name, Tokens(), tokens)  # type: ignore[arg-type]  # a Literal
    with pytest.raises(SearchError, match="last linear layer"):
        proxy_score("zen", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images())
