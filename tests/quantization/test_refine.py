"""Refinements of a static quantization: each reaches the file, in one order, or says that it finds nothing to do."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import paredown
from paredown.core.errors import RecipeError
from paredown.core.steps import Activations, Quantize, Weights
from paredown.quantization import refine
from paredown.quantization.model import QuantizedModel
from paredown.quantization.reconstruction import reconstruct_
from paredown.quantization.rounding import Rounding, adaround_
from paredown.task.task import Task
from tests.conftest import pattern_batches


class Normed(nn.Module):
    """Inputs (batch, 1, 8, 8); a layer norm whose output has an outlier channel, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.hidden, self.head = nn.LayerNorm(64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.hidden(self.norm(x.flatten(1)))))
        return logits


@pytest.fixture
def normed() -> Task:
    torch.manual_seed(0)
    model, batches = Normed(), pattern_batches(128, seed=1, batch=32)
    nn.init.constant_(model.norm.weight[3:4], 60.0)
    return Task(model.eval(), (batches[0][0][:4],), batches, batches)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "moving_average", "mse", "kl"])
def test_every_observer_reaches_the_file(observer: str, pattern_task: Task, tmp_path: object) -> None:
    model = paredown.quantize(pattern_task, Quantize(activations=Activations(observer=observer), samples=128))  # type: ignore[arg-type]  # a parameter
    artifact = paredown.export(model, pattern_task, path=f"{tmp_path}/model.onnx")
    assert artifact.precision == "int8"


@pytest.mark.parametrize("names", [("bias_correction",), ("equalization",), ("bias_correction", "equalization")])
def test_refinements_change_the_model_and_reach_the_file(names: tuple[str, ...], pattern_task: Task, tmp_path: object) -> None:
    plain, refined = (paredown.quantize(pattern_task, Quantize(samples=128, refine=r)) for r in ((), names))  # type: ignore[arg-type]
    assert any(not torch.equal(a, b) for a, b in zip(plain.state_dict().values(), refined.state_dict().values(), strict=True))
    assert paredown.export(refined, pattern_task, path=f"{tmp_path}/model.onnx").precision == "int8"


def test_adaround_leaves_weights_on_their_grids_and_reaches_the_file(
    pattern_task: Task, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "adaround_", lambda model, batches: adaround_(model, batches, Rounding(steps=20)))
    model = paredown.quantize(pattern_task, Quantize(samples=64, refine=("bias_correction", "adaround")))
    weight, key = model.get_parameter("block1.conv1.weight"), "block1/conv1@0:weight"
    assert torch.allclose(model.quantizer(key)(weight), weight, atol=1e-6), "weights lie on their grids"
    assert paredown.export(model, pattern_task, path=f"{tmp_path}/model.onnx").precision == "int8"


def test_brecq_takes_the_blocks_of_the_float_model_and_reaches_the_file(
    pattern_task: Task, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, ...]] = []

    def quick(model: QuantizedModel, batches: list[torch.Tensor], names: tuple[str, ...]) -> None:
        done.append(reconstruct_(model, batches, names, Rounding(steps=20)))  # type: ignore[arg-type]  # inputs

    monkeypatch.setattr(refine, "reconstruct_", quick)
    model = paredown.quantize(pattern_task, Quantize(bits=4, samples=64, refine=("brecq",)))
    assert done == [("stem.0", "block1", "block2", "head")]
    weight, key = model.get_parameter("block1.conv1.weight"), "block1/conv1@0:weight"
    assert torch.allclose(model.quantizer(key)(weight), weight, atol=1e-6), "weights lie on their grids"
    assert paredown.export(model, pattern_task, path=f"{tmp_path}/model.onnx").precision == "int4/int8"


def test_brecq_without_a_block_is_refused(pattern_task: Task) -> None:
    x = torch.randn(4, 8)
    task = Task(nn.Linear(8, 10), (x,), [(x, torch.zeros(4, dtype=torch.long))], [(x, torch.zeros(4, dtype=torch.long))])
    with pytest.raises(RecipeError, match="brecq must find a block that everything passes through, got none in this model"):
        paredown.quantize(task, Quantize(refine=("brecq",)))


def test_smooth_lowers_the_error_of_a_model_with_outliers(normed: Task, tmp_path: object) -> None:
    x = normed.inputs[0]  # type: ignore[index]  # a tuple
    with torch.no_grad():
        wanted = normed.model(x)
        plain, smooth = (
            paredown.quantize(normed, Quantize(activations=Activations(observer="minmax"), refine=r)) for r in ((), ("smooth",))
        )
        assert (smooth(x) - wanted).norm() < 0.6 * (plain(x) - wanted).norm()
    assert paredown.export(smooth, normed, path=f"{tmp_path}/model.onnx").precision == "int8"


def test_a_refinement_without_anything_to_change_is_refused(pattern_task: Task) -> None:
    with pytest.raises(RecipeError, match="smooth must find a norm that linear layers alone read, got none in this model; leave"):
        paredown.quantize(pattern_task, Quantize(samples=64, refine=("smooth",)))


def test_the_order_is_always_the_same(normed: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noting(name: str, result: object) -> Callable[..., object]:
        return lambda *_, **__: (done.append(name), result)[1]

    for name, result in {"smooth_": 1, "equalize_": 1, "adaround_": (), "correct_where_nearer_": {"head@0": 0}}.items():
        monkeypatch.setattr(refine, name, noting(name, result))
    paredown.quantize(normed, Quantize(refine=("bias_correction", "adaround", "equalization", "smooth")))
    assert done == ["smooth_", "equalize_", "adaround_", "correct_where_nearer_"]


def test_memory_of_refinements_is_bounded(pattern_task: Task) -> None:
    model = paredown.quantize(pattern_task, Quantize(samples=64))
    sizes = [[len(x) for x in refine.held_batches(model, pattern_task, n)] for n in (100, 10**6, 0)]  # type: ignore[arg-type]
    assert sizes == [[64, 36], [64, 64, 64, 64], [64, 64, 64, 64]]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"refine": ("adaquant",)}, "refine must be one of smooth, equalization, adaround, brecq, bias_correction"),
        ({"refine": "adaround"}, "refine must be a tuple"),
        ({"bits": 5}, "bits of a static step must be 8, 4, 3 or 2, or MixedBits, got 5; write bits=4"),
        ({"kind": "weight_only", "bits": 3}, "bits of a weight_only step must be 8 or 4, got 3"),
        ({"kind": "weight_only", "refine": ("adaround",)}, "refine belongs to kind static"),
        (
            {"weights": Weights(method="gptq")},
            "weights.method belongs to kind weight_only, got weights.method='gptq' with kind='static'",
        ),
        ({"weights": "int8"}, "weights must be a Weights, got 'int8'"),
        ({"kind": "dynamic", "weights": Weights(symmetric=False)}, "weights.symmetric belongs to kind static"),
        ({"kind": "int4"}, "kind must be one of static, dynamic, weight_only, palette, fp16, bf16"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Quantize(**fields)  # type: ignore[arg-type]  # the point
