"""Dynamic int8: linear layers run on integers, recurrent ones are stored in them; the file agrees, the checkpoint loads."""

import onnx
import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Distill, Quantize, Recipe, Task, Training, Weights
from paredown.core.effort import Effort
from paredown.core.errors import NothingToQuantizeError
from paredown.deploy.capabilities import executed_operators
from paredown.graph.dynamic_quantize import dynamic_quantize
from tests.conftest import SmallResNet
from tests.quantization.models import Attention, Recurrent, relative

DYNAMIC = Quantize(kind="dynamic")


def task_of(model: nn.Module, x: Tensor) -> Task:
    batches = [(x, torch.zeros(len(x), dtype=torch.int64))]
    return Task(model.eval(), (x,), batches, batches)


def attention() -> Task:
    torch.manual_seed(0)
    return task_of(Attention(), torch.randn(8, 6, 8))


def recurrent() -> Task:
    torch.manual_seed(0)
    return task_of(Recurrent(), torch.randint(0, 20, (8, 7)))


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [attention, pytest.param(recurrent, marks=pytest.mark.slow)])
def test_the_file_agrees_with_the_simulation_at_three_batch_sizes(make, runtime: str, tmp_path: object) -> None:  # type: ignore[no-untyped-def]
    task = make()
    model = paredown.quantize(task, DYNAMIC)
    assert 0 < relative(task.model, model, task.inputs[0]) < 0.05  # type: ignore[index,arg-type]  # a tuple
    assert paredown.export(model, task, target=runtime, path=f"{tmp_path}/m.onnx").precision == "int8"


def test_every_linear_layer_runs_in_integers_in_onnx_runtime(tmp_path: object) -> None:
    task = attention()
    artifact = paredown.export(paredown.quantize(task, DYNAMIC), task, path=f"{tmp_path}/m.onnx")
    found = executed_operators(artifact.path)
    assert found.int8 == {"DynamicQuantizeMatMul": 5}
    assert found.conversions == 0


@pytest.mark.slow
def test_the_file_holds_standard_operators_only(tmp_path: object) -> None:
    task = recurrent()
    artifact = paredown.export(paredown.quantize(task, DYNAMIC), task, path=f"{tmp_path}/m.onnx")
    assert {node.domain for node in onnx.load(artifact.path).graph.node} == {""}


def test_weights_of_recurrent_layers_and_tables_are_stored_in_8_bits(tmp_path: object) -> None:
    task = recurrent()
    model = paredown.quantize(task, Quantize(kind="dynamic", weights=Weights(embeddings=True)))
    artifact = paredown.export(model, task, path=f"{tmp_path}/m.onnx")
    stored = {t.name: t.data_type for t in onnx.load(artifact.path).graph.initializer}
    names = [name for name in stored if name.partition(".weight")[1]]
    assert (
        len([name for name in names if stored[name] == onnx.TensorProto.INT8]) == 12
    )  # 8 of the LSTM, 2 of the GRU, table, head
    assert not any(name in stored for name, _ in task.model.named_parameters() if ".weight" in name)
    assert executed_operators(artifact.path).floating.get("Cast", 0) == 0, "the weights are unpacked when the file is loaded"


def test_a_checkpoint_loads_into_a_fresh_model(tmp_path: object) -> None:
    task = recurrent()
    model = paredown.quantize(task, DYNAMIC)
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), Recurrent())
    with torch.no_grad():
        assert torch.equal(loaded(*task.inputs), model(*task.inputs))


def test_it_trains_by_distillation() -> None:
    task = attention()
    recipe = Recipe((DYNAMIC, Distill(training=Training(effort=Effort(3, "steps"), learning_rate=0.01))))
    trained, before = paredown.apply(task, recipe), paredown.apply(task, Recipe((DYNAMIC,)))
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), before.parameters(), strict=True))


def test_protected_layers_stay_in_float() -> None:
    model = paredown.quantize(attention(), Quantize(kind="dynamic", protect=("qkv",)))
    assert not any(key.startswith("qkv") for key in model.quantizers)


def test_convolutions_stay_in_float(pattern_task: Task) -> None:
    assert list(paredown.quantize(pattern_task, DYNAMIC).quantizers) == ["head@0:weight"]


def test_a_model_of_convolutions_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(1))
    with pytest.raises(NothingToQuantizeError, match="got none; quantize a model with linear or recurrent layers"):
        paredown.quantize(task_of(model, torch.randn(4, 1, 8, 8)), DYNAMIC)


def test_rounding_is_what_onnx_defines() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.3, 4.1]])
    scale = 5.1 / 255  # zero point 50
    assert torch.allclose(dynamic_quantize(x), torch.tensor([[-1.0, 0.0, 15 * scale, 4.1]]), atol=1e-6)
    assert torch.equal(dynamic_quantize(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_a_small_resnet_of_its_class_is_not_touched(pattern_task: Task) -> None:
    before = {k: v.clone() for k, v in pattern_task.model.state_dict().items()}
    paredown.quantize(pattern_task, DYNAMIC)
    assert isinstance(pattern_task.model, SmallResNet)
    assert all(torch.equal(v, before[k]) for k, v in pattern_task.model.state_dict().items())
