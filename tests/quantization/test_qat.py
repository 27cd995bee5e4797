"""Training on the grid: gradients as the papers give them, the loss falls, scales end in the exported operators."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.effort import Effort
from paredown.core.errors import OrderError, RecipeError
from paredown.core.steps import Quantize, Training
from paredown.quantization.grid import linear_grid
from paredown.quantization.model import FakeQuantizer, QuantizedModel
from paredown.quantization.qat import LearnedClip, LearnedStep, Learning, train_quantized
from paredown.quantization.scheme import BitWidths, Scheme
from paredown.quantization.static import prepare, quantize_model
from paredown.task.batches import Batch, call
from paredown.task.task import Task
from tests.conftest import SmallResNet

SHORT = Training(effort=Effort(30, "steps"), learning_rate=0.02)


def quantizer(
    bits: int = 3, *, shape: tuple[int, ...] = (1,), axis: int = -1, symmetric: bool = True, block: int = 0
) -> FakeQuantizer:
    made = FakeQuantizer(linear_grid(bits, symmetric=symmetric, signed=symmetric), shape, axis, block)
    made.set_(torch.full(shape, 0.3), torch.zeros(shape, dtype=torch.int32))
    return made


def low_bit(model: nn.Module, task: Task, bits: int) -> QuantizedModel:
    return quantize_model(model, task, Quantize(), reduced=True, scheme=Scheme(BitWidths(bits, max(bits, 3))))


def distance(teacher: nn.Module):  # type: ignore[no-untyped-def]
    """Distillation, passed in as a callable."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = teacher(batch[0])
        return F.kl_div(F.log_softmax(call(model, batch[0]), 1), F.softmax(wanted, 1), reduction="batchmean")

    return loss


@pytest.mark.parametrize("block, shape, axis", [(0, (1,), -1), (0, (4,), 0), (8, (4, 3), 1)])
def test_a_learned_step_computes_what_the_exported_operator_computes(block: int, shape: tuple[int, ...], axis: int) -> None:
    origin = quantizer(shape=shape, axis=axis, block=block)
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LearnedStep(origin, is_weight=True)(x), origin(x))


def test_the_gradient_of_the_step_is_that_of_the_paper() -> None:
    origin = quantizer()
    x = torch.tensor([-5.0, -0.4, 0.1, 0.7, 5.0], requires_grad=True)
    learned = LearnedStep(origin, is_weight=True)
    learned(x).sum().backward()
    v = (x.detach() / 0.3)[1:4]
    expected = (torch.round(v) - v).sum() + origin.grid.low + origin.grid.high
    assert learned.step.grad is not None and x.grad is not None
    assert learned.step.grad.item() == pytest.approx(expected.item() / (5 * origin.grid.high) ** 0.5, rel=1e-4)
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_the_clip_learns_from_what_lies_above_it() -> None:
    origin = quantizer(2, symmetric=False)  # alpha = 0.9
    clip = LearnedClip(origin)
    x = torch.tensor([-1.0, 0.2, 0.8, 2.0, 3.0], requires_grad=True)
    y = clip(x)
    assert torch.allclose(y, origin(x))
    y.sum().backward()
    assert clip.alpha.grad is not None and x.grad is not None
    assert clip.alpha.grad.item() == 2
    assert x.grad.tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("method", ["straight_through", "lsq", "pact"])
@pytest.mark.parametrize("bits", [8, 3])
def test_the_loss_falls_and_the_given_model_stays(
    method: str, bits: int, trained_small_resnet: SmallResNet, pattern_task: Task
) -> None:
    model = low_bit(trained_small_resnet, pattern_task, bits)
    before = copy.deepcopy(model.state_dict())
    loss = distance(trained_small_resnet)
    trained = train_quantized(model, pattern_task.train, loss, SHORT, Learning(method))  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    batch = pattern_task.validation[0]  # type: ignore[index]  # a list
    with torch.no_grad():
        losses = [float(loss(m, batch)) for m in (model, trained)]
    assert losses[1] < losses[0] if bits == 3 else losses[1] < losses[0] + 0.01
    assert set(trained.state_dict()) == set(before) and not trained.training
    moved = [k for k in trained.quantizers if not torch.equal(trained.quantizer(k).scale, model.quantizer(k).scale)]
    kinds = {
        "straight_through": set(),
        "lsq": {"weight", "output", "input", "add", "bias"},
        "pact": {"output", "input", "add", "bias"},
    }
    assert {k.rpartition(":")[2] for k in moved} <= kinds[method]
    assert bool(moved) is (method != "straight_through")


def test_two_bits_recover_most_of_what_they_lost(trained_small_resnet: SmallResNet, pattern_task: Task) -> None:
    model = low_bit(trained_small_resnet, pattern_task, 2)
    trained = train_quantized(
        model, pattern_task.train, distance(trained_small_resnet), Training(effort=Effort(60, "steps"), learning_rate=0.05)
    )

    def right(m: nn.Module) -> float:
        with torch.no_grad():
            return sum(float((m(x).argmax(1) == y).sum()) for x, y in pattern_task.validation) / 640

    float_model, rounded, learned = right(trained_small_resnet), right(model), right(trained)
    assert float_model - learned < 0.5 * (float_model - rounded)


def test_biases_end_on_the_grid_of_the_runtime(trained_small_resnet: SmallResNet, pattern_task: Task) -> None:
    model = low_bit(trained_small_resnet, pattern_task, 4)
    trained = train_quantized(model, pattern_task.train, distance(trained_small_resnet), SHORT)
    step = trained.quantizer("stem/0@0:input").scale * trained.quantizer("stem/0@0:weight").scale
    assert torch.equal(trained.quantizer("stem/0@0:bias").scale, step)
    assert all(trained.quantizer(key).enabled for key in trained.quantizers)


def test_the_same_seed_gives_the_same_model(trained_small_resnet: SmallResNet, pattern_task: Task) -> None:
    model, loss = low_bit(trained_small_resnet, pattern_task, 4), distance(trained_small_resnet)
    short = Training(effort=Effort(5, "steps"))
    first, second = (train_quantized(model, pattern_task.train, loss, short, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_a_model_without_scales_is_refused(trained_small_resnet: SmallResNet, pattern_task: Task) -> None:
    model = prepare(trained_small_resnet, pattern_task.inputs, Quantize(), reduced=True)
    with pytest.raises(OrderError, match=r"calibrated before it is trained, got no scale at .*; call calibrate_ first"):
        train_quantized(model, pattern_task.train, distance(trained_small_resnet), SHORT)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(RecipeError, match="method must be one of straight_through, lsq, pact, got 'dorefa'"):
        Learning("dorefa")  # type: ignore[arg-type]
