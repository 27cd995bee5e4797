"""16-bit floats and palettes: smaller files that agree as fp32 does, in both runtimes, kept by checkpoint and recipe."""

import onnx
import pytest
import torch
from torch import nn

import paredown
from paredown import Distill, Prune, Quantize, Recipe, Task, Training, Weights
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.deploy.capabilities import executed_operators
from paredown.quantization.bits import layer_bits
from paredown.quantization.model import QuantizedModel
from tests.conftest import SmallResNet
from tests.quantization.models import Recurrent, relative

FORMS = {
    "fp16": (Quantize(kind="fp16"), 0.6, 1e-3),  # of fp32's bytes at most, relative error at most
    "bf16": (Quantize(kind="bf16"), 0.6, 1e-2),
    "palette8": (Quantize(kind="palette"), 0.45, 2e-2),
    "palette4": (Quantize(kind="palette", bits=4), 0.35, 0.3),
}
each_form = pytest.mark.parametrize("name", FORMS)


def made(task: Task, *steps: object) -> QuantizedModel:
    model = paredown.apply(task, Recipe(steps))  # type: ignore[arg-type]  # steps
    assert isinstance(model, QuantizedModel)
    return model


def check_file(task: Task, name: str, runtime: str, path: str) -> None:
    config, most, _ = FORMS[name]
    artifact = paredown.export(made(task, config), task, target=runtime, path=path)
    assert artifact.precision == name  # export compares with the tolerance of fp32
    assert {node.domain for node in onnx.load(artifact.path).graph.node} == {""}
    assert not {"Cast", "Gather"} & set(executed_operators(artifact.path).floating), (
        "weights are converted when the file is loaded"
    )
    assert artifact.size_bytes < most * 4 * sum(p.numel() for p in task.model.parameters()) + 3_000  # the graph


@pytest.mark.parametrize("name, runtime", [("fp16", "onnxruntime"), ("palette4", "openvino")])
def test_the_file_is_small_and_as_near_to_torch_as_fp32(pattern_task: Task, name: str, runtime: str, tmp_path: object) -> None:
    check_file(pattern_task, name, runtime, f"{tmp_path}/m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@each_form
def test_so_are_all_forms_in_both_runtimes(pattern_task: Task, name: str, runtime: str, tmp_path: object) -> None:
    check_file(pattern_task, name, runtime, f"{tmp_path}/m.onnx")


@each_form
def test_what_is_lost_is_little(pattern_task: Task, name: str) -> None:
    x = pattern_task.inputs[0]  # type: ignore[index]  # a tuple
    assert 0 < relative(pattern_task.model, made(pattern_task, FORMS[name][0]), x) < FORMS[name][2]


@pytest.mark.parametrize("name", ["palette4", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fp16", "bf16", "palette8"))])
def test_a_pruned_model_is_stored_so_trained_and_loaded(pattern_task: Task, name: str, tmp_path: object) -> None:
    short = Distill(training=Training(effort=Effort(3, "steps")))
    recipe = Recipe((Prune(ratio=0.3), FORMS[name][0], short))
    assert Recipe.parse(recipe.to_yaml()) == recipe == Recipe.parse(recipe.to_json())
    model = made(pattern_task, *recipe.steps)
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), SmallResNet(16))
    with torch.no_grad():
        assert torch.equal(loaded(*pattern_task.inputs), model(*pattern_task.inputs))
    assert paredown.export(loaded, pattern_task, path=f"{tmp_path}/m.onnx").precision == name


def test_the_report_says_what_is_stored_and_computed(pattern_task: Task) -> None:
    rows = {row.module: row for row in layer_bits(made(pattern_task, Quantize(kind="palette", bits=4, protect=("head",))))}
    assert (rows["stem.0"].weight_bits, rows["stem.0"].activation_bits) == (4, 32) and "codebook" in rows["stem.0"].note
    assert rows["head"].weight_bits == 32
    half = layer_bits(made(pattern_task, Quantize(kind="fp16")))
    assert {row.weight_bits for row in half} == {16} and "computed in 32" in half[0].note


@pytest.mark.slow
def test_tables_and_recurrent_weights_are_stored_so_too(tmp_path: object) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (8, 7))
    batches = [(tokens, torch.zeros(8, dtype=torch.int64))]
    task = Task(Recurrent().eval(), (tokens,), batches, batches)
    for config in (Quantize(kind="fp16"), Quantize(kind="palette", weights=Weights(embeddings=True))):
        artifact = paredown.export(made(task, config), task, path=f"{tmp_path}/m.onnx")
        names = {t.name for t in onnx.load(artifact.path).graph.initializer}
        assert not names & {name for name, p in task.model.named_parameters() if p.dim() > 1}


class Upsampling(nn.Module):
    """(batch, 3, 8, 8) -> (batch, 2): a convolution, and a transposed one that holds most of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 16, 3, 2, 1), nn.ConvTranspose2d(16, 32, 4, 2, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(torch.relu(self.down(x)))
        return y.mean((2, 3))[:, :2]


@pytest.mark.parametrize("name", ["fp16", pytest.param("palette4", marks=pytest.mark.slow)])
def test_transposed_convolutions_are_stored_so_too(name: str, tmp_path: object) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    batches = [(x, torch.zeros(4, dtype=torch.int64))]
    task = Task(Upsampling().eval(), (x[:2],), batches, batches)
    model = made(task, FORMS[name][0])
    artifact = paredown.export(model, task, path=f"{tmp_path}/m.onnx")
    assert "up.weight" not in {tensor.name for tensor in onnx.load(artifact.path).graph.initializer}
    row = {row.module: row for row in layer_bits(model)}["up"]
    assert row.weight_bits == {"fp16": 16, "palette4": 4}[name] and row.parameters == 16 * 16 * 16
    assert row.cost is not None and row.cost.bops_float == 32 * 32 * 16 * (4 * 4) * (16 * 16)  # inputs at 4 by 4, 4,096 weights


def test_a_transposed_convolution_without_integers_says_so() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    batches = [(x, torch.zeros(4, dtype=torch.int64))]
    rows = {row.module: row for row in layer_bits(made(Task(Upsampling().eval(), (x[:2],), batches, batches), Quantize()))}
    assert rows["up"].weight_bits == 32 and "no place for a quantizer" in rows["up"].note


def test_a_weight_beyond_fp16_is_refused(pattern_task: Task) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(model[1].weight, 1e5)  # type: ignore[arg-type]  # a parameter
    with pytest.raises(RecipeError, match=r'at most 65504, got 1e\+05 at 1@0:weight; write kind="bf16"'):
        paredown.quantize(pattern_task, Quantize(kind="fp16"), model=model)
    assert paredown.quantize(pattern_task, Quantize(kind="bf16"), model=model) is not None


def test_bits_are_not_for_16_bit_floats() -> None:
    with pytest.raises(RecipeError, match="bits belongs to kind static or dynamic or weight_only or palette, got bits=4"):
        Quantize(kind="fp16", bits=4)
