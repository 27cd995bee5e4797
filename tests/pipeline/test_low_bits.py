"""Weights of 4, 3 and 2 bits: packed in a file that runs in int8, trained with their scales by distillation, also when pruned."""

import pathlib

import onnx
import pytest
import torch
from torch import nn

import paredown
from paredown import Activations, Distill, Prune, Quantize, Recipe, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import OrderError
from paredown.deploy.capabilities import executed_operators
from paredown.deploy.constants import Constants
from paredown.quantization.model import QuantizedModel
from tests.conftest import SmallResNet

TRAINING = Training(effort=Effort(40, "steps"), learning_rate=0.05)


def right(model: nn.Module, task: Task) -> float:
    with torch.no_grad():
        return sum(float((model(x).argmax(1) == y).sum()) for x, y in task.validation) / 640


def quantized(task: Task, config: Quantize, *more: object) -> QuantizedModel:
    result = paredown.apply(task, Recipe((config, *more)))  # type: ignore[arg-type]  # steps
    assert isinstance(result, QuantizedModel)
    return result


def stored_bytes(path: str, name: str) -> int:
    """Of the one tensor of that name, checked to be a constant of the graph."""
    model = onnx.load(path)
    (stored,) = [tensor for tensor in model.graph.initializer if name in tensor.name and "shape" not in tensor.name]
    assert Constants(model).get(stored.name) is not None
    return len(stored.raw_data)


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits, activation_bits", [(8, 8), (4, 8), (3, 8), (2, 4)])
def test_the_file_agrees_runs_in_int8_and_weights_take_the_bytes_of_their_bits(
    pattern_task: Task, bits: int, activation_bits: int, runtime: str, tmp_path: object
) -> None:
    model = quantized(pattern_task, Quantize(bits=bits, activations=Activations(bits=activation_bits), target=runtime))
    artifact = paredown.export(model, pattern_task, target=runtime, path=f"{tmp_path}/m.onnx")
    assert artifact.precision == ("int8" if bits == 8 else f"int{bits}/int8")
    found = executed_operators(artifact.path)
    if bits != 3:  # which no type of ONNX has
        assert stored_bytes(artifact.path, "block2.conv2.weight_quantized") == 32 * 32 * 9 * bits // 8
    if runtime == "onnxruntime":
        assert found.int8["QLinearConv"] == 6 and "Conv" not in found.floating


def test_the_first_and_the_last_layer_keep_8_bits(pattern_task: Task) -> None:
    model = quantized(pattern_task, Quantize(bits=2))
    bits = {key: model.quantizer(key).grid.bits for key in model.quantizers if key.endswith(":weight")}
    assert {key: b for key, b in bits.items() if b > 2}.keys() == {"stem/0@0:weight", "head@0:weight"}


@pytest.mark.parametrize("scales", ["lsq", "pact"])
def test_distillation_trains_the_scales_and_brings_back_most(pattern_task: Task, scales: str) -> None:
    config = Quantize(bits=2, activations=Activations(bits=4), scales=scales)  # type: ignore[arg-type]  # one of them
    before, after = paredown.quantize(pattern_task, config), quantized(pattern_task, config, Distill(training=TRAINING))
    lost = right(pattern_task.model, pattern_task) - right(before, pattern_task)
    assert right(pattern_task.model, pattern_task) - right(after, pattern_task) < 0.5 * lost
    moved = {key for key in after.quantizers if not torch.equal(after.quantizer(key).scale, before.quantizer(key).scale)}
    assert any(key.endswith(":output") for key in moved)
    assert any(key.endswith(":weight") for key in moved) is (scales == "lsq")


@pytest.mark.parametrize("scales", ["lsq", "pact"])
def test_scales_that_nothing_trained_are_not_exported(pattern_task: Task, scales: str, tmp_path: pathlib.Path) -> None:
    config = Quantize(bits=4, scales=scales)  # type: ignore[arg-type]  # one of them
    model = paredown.quantize(pattern_task, config)
    saved = paredown.save_checkpoint(model, tmp_path / "untrained")
    for untrained in (model, paredown.load_checkpoint(saved, SmallResNet(16))):
        with pytest.raises(OrderError, match=rf'got scales="{scales}", not trained.*paredown.distill.*scales="fixed"'):
            paredown.export(untrained, pattern_task, path=tmp_path / "m.onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_trained_scales_are_exported_from_a_checkpoint_too(pattern_task: Task, tmp_path: pathlib.Path) -> None:
    short = Distill(training=Training(effort=Effort(2, "steps")))
    model = quantized(pattern_task, Quantize(bits=4, scales="lsq"), short)
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, tmp_path / "c"), SmallResNet(16))
    for trained in (model, loaded):
        assert paredown.export(trained, pattern_task, path=tmp_path / "m.onnx").precision == "int4/int8"


def test_fixed_scales_stay(pattern_task: Task) -> None:
    config = Quantize(bits=4)
    before, after = quantized(pattern_task, config), quantized(pattern_task, config, Distill(training=TRAINING))
    assert all(torch.equal(after.quantizer(key).scale, before.quantizer(key).scale) for key in after.quantizers)


@pytest.mark.slow
def test_a_pruned_model_is_trained_exported_and_loaded(pattern_task: Task, tmp_path: object) -> None:
    short = Distill(training=Training(effort=Effort(5, "steps")))
    recipe = Recipe((Prune(ratio=0.3), Quantize(bits=4, scales="lsq"), short))
    assert Recipe.parse(recipe.to_yaml()) == recipe == Recipe.parse(recipe.to_json())
    model = paredown.apply(pattern_task, recipe)
    paredown.export(model, pattern_task, path=f"{tmp_path}/m.onnx")
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), SmallResNet(16))
    with torch.no_grad():
        assert torch.equal(loaded(*pattern_task.inputs), model(*pattern_task.inputs))
    assert isinstance(loaded, QuantizedModel) and loaded.config.scales == "lsq"
    again = paredown.distill(pattern_task, short, model=loaded)
    assert any(not torch.equal(a, b) for a, b in zip(again.buffers(), loaded.buffers(), strict=True))
