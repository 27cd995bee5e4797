"""Embedding tables in 8 bits, beside layers that compute in integers: the file is small, agrees, and loads them once."""

import dataclasses
import pathlib
from collections.abc import Callable

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from paredown import Activations, Distill, MixedBits, Prune, Quantize, Recipe, Task, Training, Weights, Widths
from paredown.core.errors import NotFiniteError
from paredown.core.precision import Scales
from paredown.core.steps import Criterion
from paredown.deploy.capabilities import executed_operators
from paredown.measure.cost import count_macs
from paredown.quantization.model import QuantizedModel
from tests.quantization.models import relative


class Words(nn.Module):
    """Words looked up, averaged, and told apart; most of its numbers are the table's. (batch, words) -> (batch, 5)"""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(500, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.hidden(self.table(words).mean(1))))
        return out


class Tied(Words):
    """The table is looked up twice, and is the head."""

    def forward(self, words: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(self.table(words).mean(1) + self.table(words.flip(1)[:, :2]).mean(1)))
        return hidden @ self.table.weight.T


class Sparse(Words):
    """Gradients of the table are sparse tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 32, sparse=True)


class Looked(nn.Module):
    """A table of its own, read by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(500, 32))
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(F.embedding(words, self.table).mean(1))))
        return out


def task_of(make: Callable[[], nn.Module]) -> Task:
    """Right is what the model says. The last row of the table is looked up by none."""
    torch.manual_seed(0)
    model, x = make().eval(), torch.randint(0, 499, (64, 7))
    batches = [(x, model(x).argmax(1))]
    return Task(model, (x[:2],), batches, batches)


@pytest.fixture(scope="module")
def words() -> Task:
    return task_of(Words)


@pytest.mark.parametrize(
    "step",
    [
        Quantize(),
        Quantize(bits=4),
        Quantize(bits=MixedBits(average=6, evaluations=1)),
        Quantize(weights=Weights(symmetric=False)),
        Quantize(weights=Weights(two_sided=True)),
        Quantize(activations=Activations(two_sided=True), refine=("adaround",)),
    ],
    ids=["static", "4 bits", "mixed", "asymmetric", "two-sided", "refined"],
)
def test_a_static_step_stores_tables_in_8_bits_on_request(words: Task, step: Quantize, tmp_path: pathlib.Path) -> None:
    asked = dataclasses.replace(step, target="onnxruntime", weights=dataclasses.replace(step.weights, embeddings=True))
    model = paredown.quantize(words, asked)
    grid = model.quantizer("table@0:weight").grid
    assert (grid.low, grid.high, grid.two_sided) == (-127, 127, False)
    artifact = paredown.export(model, words, path=tmp_path / "m.onnx")  # which compares the file with the model
    stored = {t.name: t.data_type for t in onnx.load(artifact.path).graph.initializer if list(t.dims) == [500, 32]}
    assert list(stored.values()) == [onnx.TensorProto.INT8]
    assert executed_operators(artifact.path).floating.get("Cast", 0) == 0, "the table is unpacked when the file is loaded"
    assert relative(words.model, model, words.train[0][0]) < 0.4


@pytest.mark.parametrize("scales", ["fixed", "lsq"])
def test_a_tied_table_that_is_looked_up_twice_has_one_quantizer_and_trains(scales: Scales) -> None:
    step = Quantize(weights=Weights(embeddings=True), scales=scales)
    model = paredown.apply(task_of(Tied), Recipe((step, Distill(training=Training(effort="2 steps")))))
    assert isinstance(model, QuantizedModel)
    assert all(bool(scale.isfinite().all()) for name, scale in model.state_dict().items() if name.endswith("scale"))
    assert len([key for key in model.quantizers if key.endswith(":weight")]) == 2, "of the hidden layer, and of the table"


def test_layers_beside_a_table_in_the_same_module_keep_the_bits_of_the_step() -> None:
    task = task_of(lambda: nn.Sequential(Looked(), nn.Linear(32, 32), nn.Linear(32, 5)))
    model = paredown.quantize(task, Quantize(bits=4))
    assert [model.quantizer(f"0/{name}@0:weight").grid.bits > 4 for name in ("first", "second")] == [True, False]


def test_a_table_of_the_root_is_in_8_bits_and_one_that_is_not_finite_is_refused() -> None:
    step = Quantize(bits=4, weights=Weights(embeddings=True))
    task = task_of(Looked)
    assert paredown.quantize(task, step).quantizer("@0:weight").grid.bits == 8
    with torch.no_grad():
        task.model.table[499, 3] = torch.nan  # type: ignore[operator,index]  # a parameter
    for each in (step, Quantize(kind="palette", weights=step.weights), Quantize(kind="bf16")):
        with pytest.raises(NotFiniteError, match="weights at @0:weight"):
            paredown.quantize(task, each)


def test_tables_stay_in_float_where_nothing_is_asked(words: Task) -> None:
    assert "table@0:weight" not in paredown.quantize(words, Quantize()).quantizers
    kept = Quantize(weights=Weights(embeddings=True), protect=("table",))
    assert "table@0:weight" not in paredown.quantize(words, kept).quantizers


@pytest.mark.parametrize("make", [Words, Looked])
def test_a_planned_run_stores_them_for_a_size(make: Callable[[], nn.Module], tmp_path: pathlib.Path) -> None:
    report = paredown.compress(task_of(make), paredown.Budget(max_drop=0.5, size="0.4x"), out=tmp_path, effort="1 step")
    (step,) = report.stages[-1].recipe.steps
    assert isinstance(step, Quantize) and step.weights.embeddings and report.met


@pytest.mark.parametrize("importance", ["taylor", "taylor_second", "fisher"])
def test_a_table_with_sparse_gradients_is_ranked_and_cut(importance: Criterion) -> None:
    task = task_of(Sparse)
    pruned = paredown.prune(task, Prune(ratio=0.3, importance=importance, widths=Widths(round_to=1)))
    assert count_macs(pruned, task.inputs) <= 0.7 * count_macs(task.model, task.inputs)
    dense = Words().eval()
    dense.load_state_dict(task.model.state_dict())
    same = paredown.prune(
        dataclasses.replace(task, model=dense), Prune(ratio=0.3, importance=importance, widths=Widths(round_to=1))
    )
    assert torch.equal(pruned(task.inputs[0]), same(task.inputs[0]))
