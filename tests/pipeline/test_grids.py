"""Two-sided grids and scales that are powers of two: in simulation, checkpoint, recipe and file."""

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Activations, Distill, MixedBits, Quantize, Recipe, Task, Training, Weights
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.deploy.capabilities import executed_operators
from paredown.quantization.bits import layer_bits
from paredown.quantization.grid import dequantize_two_sided, linear_grid, quantize_two_sided
from paredown.quantization.layers import layers_of
from paredown.quantization.model import QuantizedModel
from tests.conftest import SmallResNet, make_pattern_task
from tests.quantization.models import relative

TWO_SIDED = {
    "weights, 8 bits": Quantize(weights=Weights(two_sided=True)),
    "weights, 3 bits": Quantize(bits=3, weights=Weights(two_sided=True)),
    "activations, 8 bits": Quantize(activations=Activations(two_sided=True)),
    "activations, 4 bits": Quantize(activations=Activations(bits=4, two_sided=True)),
    "both, powers of two": Quantize(
        bits=4, weights=Weights(two_sided=True, power_of_two=True), activations=Activations(two_sided=True, power_of_two=True)
    ),
}
POWERS = Quantize(weights=Weights(power_of_two=True), activations=Activations(power_of_two=True))


def is_power_of_two(scale: Tensor) -> bool:
    return bool((torch.frexp(scale)[0] == 0.5).all())


def test_the_operator_is_the_grid() -> None:
    torch.manual_seed(0)
    x, grid = torch.randn(3, 50), linear_grid(4)
    negative, positive = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.05, 0.4])
    got = torch.ops.paredown.fake_quantize_two_sided(x, negative, positive, 0, -8, 7)
    q = quantize_two_sided(x, negative, positive, grid, 0)
    assert torch.equal(got, dequantize_two_sided(q, negative, positive, 0)) and int(q.min()) == -8 and int(q.max()) == 7
    x.requires_grad_()
    torch.ops.paredown.fake_quantize_two_sided(x, negative, positive, 0, -8, 7).sum().backward()
    steps = x.detach() / torch.where(x.detach() < 0, negative[:, None], positive[:, None])
    assert torch.equal(x.grad, ((steps.round() >= -8) & (steps.round() <= 7)).float())


@pytest.fixture(scope="module")
def float_bytes(trained_small_resnet: SmallResNet, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Size of the uncompressed model's file."""
    path = tmp_path_factory.mktemp("fp32") / "m.onnx"
    return paredown.export(trained_small_resnet, make_pattern_task(trained_small_resnet), path=path).size_bytes


@pytest.mark.parametrize(
    ("case", "runtime"),
    [(case, "onnxruntime") for case in TWO_SIDED]
    + [pytest.param(case, "openvino", marks=() if "3 bits" in case else pytest.mark.slow) for case in TWO_SIDED],
)
def test_two_sided_files_agree_with_the_simulation(
    pattern_task: Task, case: str, runtime: str, float_bytes: int, tmp_path: object
) -> None:
    model = paredown.quantize(pattern_task, TWO_SIDED[case], target=runtime)
    artifact = paredown.export(model, pattern_task, target=runtime, path=f"{tmp_path}/m.onnx")  # raises where it doesn't
    assert artifact.size_bytes < 0.6 * float_bytes
    assert all("two_sided" not in row.note and "one scale for both signs" in row.note for row in layer_bits(model))
    if runtime == "onnxruntime":
        assert not {"QLinearConv", "QLinearMatMul"} & set(executed_operators(artifact.path).int8)


@pytest.mark.parametrize("case", TWO_SIDED)
def test_two_sided_models_come_back_from_checkpoint_and_recipe(pattern_task: Task, case: str, tmp_path: object) -> None:
    config = TWO_SIDED[case]
    assert Recipe.parse(Recipe((config,)).to_json()).steps == (config,)
    model = paredown.quantize(pattern_task, config)
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), SmallResNet(16))
    with torch.no_grad():
        assert torch.equal(loaded(*pattern_task.inputs), model(*pattern_task.inputs))


class Skewed(nn.Module):
    """Weights that reach far on one side only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.second.weight.copy_(torch.where(self.second.weight > 0, self.second.weight, 0.1 * self.second.weight))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


def test_two_sided_weights_lose_less_where_sides_differ() -> None:
    torch.manual_seed(1)
    x = torch.randn(64, 16)
    batches = [(x, torch.zeros(64, dtype=torch.int64))]
    task = Task(Skewed().eval(), (x[:4],), batches, batches)
    errors = {}
    for two_sided in (False, True):
        config = Quantize(bits=3, weights=Weights(two_sided=two_sided), protect=("first",))
        errors[two_sided] = relative(task.model, paredown.quantize(task, config), x)
    assert errors[True] < 0.9 * errors[False]


def test_mixed_bits_and_fine_tuning_take_two_sided_grids(pattern_task: Task) -> None:
    step = Quantize(bits=MixedBits(3.5, evaluations=2), weights=Weights(two_sided=True), activations=Activations(two_sided=True))
    model = paredown.quantize(pattern_task, step)
    assert len({row.weight_bits for row in layer_bits(model)}) > 1
    tuned = paredown.distill(pattern_task, Distill(training=Training(effort=Effort(5, "steps"))), model=model)
    x = pattern_task.validation[0][0]  # type: ignore[index]  # a list
    with torch.no_grad():
        assert not torch.equal(tuned(x), model(x)) and bool(tuned(x).isfinite().all())


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_scales_are_powers_of_two_and_still_run_on_integers(pattern_task: Task, runtime: str, tmp_path: object) -> None:
    model = paredown.quantize(pattern_task, POWERS, target=runtime)
    assert all(is_power_of_two(model.quantizer(key).scale) for key in model.quantizers)  # of biases too
    artifact = paredown.export(model, pattern_task, target=runtime, path=f"{tmp_path}/m.onnx")
    assert artifact.precision == "int8"
    if runtime == "onnxruntime":
        assert executed_operators(artifact.path).int8
    loaded = paredown.load_checkpoint(paredown.save_checkpoint(model, f"{tmp_path}/c"), SmallResNet(16))
    assert isinstance(loaded, QuantizedModel) and loaded.quantizer("stem/0@0:weight").grid.power_of_two
    assert Recipe.parse(Recipe((POWERS,)).to_yaml()).steps == (POWERS,)


@pytest.mark.parametrize("scales", ["lsq", "pact"])
def test_learned_scales_stay_powers_of_two(pattern_task: Task, scales: str) -> None:
    step = Quantize(
        bits=4, scales=scales, weights=Weights(power_of_two=True), activations=Activations(power_of_two=True)  # type: ignore[arg-type]
    )  # fmt: skip
    model = paredown.quantize(pattern_task, step)
    training = Training(effort=Effort(10, "steps"), learning_rate=0.05)
    tuned = paredown.distill(pattern_task, Distill(training=training), model=model)
    assert isinstance(tuned, QuantizedModel)
    assert all(is_power_of_two(tuned.quantizer(key).scale) for key in tuned.quantizers)
    layer = layers_of(tuned)[2]
    assert not torch.equal(layer.weight(tuned), layer.weight(model))


def test_what_two_sides_exclude_is_refused() -> None:
    with pytest.raises(RecipeError, match="two-sided weights have no zero point"):
        Weights(two_sided=True, symmetric=False)
    with pytest.raises(RecipeError, match="two-sided weights are computed in float"):
        Weights(two_sided=True, range="reduced")
    with pytest.raises(RecipeError, match='scales are learned on one-sided grids, got scales="lsq"'):
        Quantize(bits=4, scales="lsq", activations=Activations(two_sided=True))
    with pytest.raises(RecipeError, match="rounding is learned on one-sided grids, got adaround"):
        Quantize(bits=4, refine=("adaround",), weights=Weights(two_sided=True))
    with pytest.raises(RecipeError, match=r"weights.two_sided belongs to kind static"):
        Quantize(kind="weight_only", weights=Weights(two_sided=True))
    with pytest.raises(RecipeError, match="power_of_two must be a bool"):
        Weights(power_of_two=1)  # type: ignore[arg-type]
