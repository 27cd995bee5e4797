"""A quantized model is an ordinary module: it trains, copies, saves, loads, and can be traced again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.steps import Activations, Quantize
from paredown.graph.trace import trace
from paredown.quantization.model import FakeQuantizer, QuantizedModel
from paredown.quantization.static import prepare, quantize_model
from paredown.task.batches import Batch
from paredown.task.task import Task
from tests.conftest import SmallResNet, make_small_resnet
from tests.quantization.models import mixed, mixed_inputs


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 10
    x = torch.randn(64, 1, 8, 8, generator=generator) * 0.3 + labels.view(-1, 1, 1, 1) / 5
    return [(x[:32], labels[:32]), (x[32:], labels[32:])]


@pytest.fixture(scope="module")
def quantized(batches: list[Batch]) -> QuantizedModel:
    model = make_small_resnet()
    return quantize_model(model, Task(model, (batches[0][0],), batches, batches), Quantize(), reduced=True)


def test_it_carries_what_it_was_made_with(quantized: QuantizedModel) -> None:
    assert (quantized.config, quantized.reduced, quantized.dynamic, quantized.manifest) == (Quantize(), True, None, None)
    assert isinstance(quantized.example_inputs, tuple)
    assert QuantizedModel.prunable is False
    assert type(quantized).__name__ == "QuantizedModel"


def test_parameters_keep_their_names_and_gain_folded_biases(quantized: QuantizedModel, small_resnet: SmallResNet) -> None:
    weights = {name for name, p in small_resnet.named_parameters() if p.dim() > 1}
    names = {name for name, _ in quantized.named_parameters()}
    assert weights <= names
    assert names - weights == {name.removesuffix("weight") + "bias" for name in weights}


def test_a_deep_copy_is_equal_and_apart(quantized: QuantizedModel, batches: list[Batch]) -> None:
    x = batches[0][0]
    copied = copy.deepcopy(quantized)
    assert isinstance(copied, QuantizedModel)
    assert (copied.config, copied.reduced) == (quantized.config, quantized.reduced)
    assert torch.equal(copied(x), quantized(x))
    with torch.no_grad():
        before = quantized(x).clone()
        for p in copied.parameters():
            p.zero_()
    assert torch.equal(quantized(x), before)


def test_its_state_loads_into_a_prepared_model(quantized: QuantizedModel, batches: list[Batch]) -> None:
    fresh = prepare(SmallResNet(), quantized.example_inputs, quantized.config, reduced=quantized.reduced)
    assert not torch.isfinite(fresh(batches[0][0])).any()  # not calibrated
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(batches[0][0]), quantized(batches[0][0]))


def test_any_batch_size_runs_and_retracing_gives_the_same(quantized: QuantizedModel, batches: list[Batch]) -> None:
    program = trace(quantized, quantized.example_inputs).module(check_guards=False)
    with torch.no_grad():
        for samples in (1, 2, 7):
            x = batches[0][0][:samples]
            assert torch.equal(program(x), quantized(x))


def test_rounding_of_activations_shows_at_most_256_values(quantized: QuantizedModel, batches: list[Batch]) -> None:
    seen: list[Tensor] = []
    quantizer = quantized.quantizer("stem/0@0:output")
    handle = quantizer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    quantized(batches[0][0])
    handle.remove()
    assert 2 < len(seen[0].unique()) <= 256
    assert quantizer.zero_point.item() == 0  # behind a relu
    assert seen[0].min().item() == 0


def test_a_few_steps_of_training_lower_the_loss(quantized: QuantizedModel, batches: list[Batch]) -> None:
    model = copy.deepcopy(quantized).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(12):
        loss = torch.stack([F.cross_entropy(model(x), y) for x, y in batches]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


def test_scales_do_not_move_in_training(quantized: QuantizedModel, batches: list[Batch]) -> None:
    model = copy.deepcopy(quantized).train()
    model(batches[0][0])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), quantized.buffers(), strict=True))


def test_named_inputs_and_nested_outputs_are_those_of_the_original() -> None:
    model, inputs = mixed(), mixed_inputs(4)
    batches = [(inputs, None)]
    task = Task(model, inputs, batches, [(inputs, torch.zeros(4))], metric=lambda o, t: o["logits"].sum(1))
    quantized = quantize_model(model, task, Quantize(activations=Activations(observer="minmax")), reduced=False)
    other = mixed_inputs(9, seed=1)
    with torch.no_grad():
        expected, output = model(**other), quantized(**other)
    assert list(output) == ["logits", "features"]
    assert isinstance(output["features"][1], tuple)
    pairs = [(output["logits"], expected["logits"]), (output["features"][1][0], expected["features"][1][0])]
    assert all(0 < ((a - b).norm() / b.norm()) < 0.05 for a, b in pairs)


def test_dropouts_follow_the_mode_and_unfolded_batch_norms_stay_frozen() -> None:
    inputs = mixed_inputs(4)
    quantized = prepare(mixed(), inputs, Quantize(), reduced=False)
    for quantizer in quantized.quantizers.values():
        assert isinstance(quantizer, FakeQuantizer)
        quantizer.enabled = False
    assert set(quantized.dropouts) == {"drop@0", "drop_channels@0"}
    assert torch.equal(quantized(**inputs)["logits"], quantized(**inputs)["logits"])
    mean = quantized.get_buffer("late.running_mean").clone()
    torch.manual_seed(0)
    quantized.train()
    assert not torch.equal(quantized(**inputs)["logits"], quantized(**inputs)["logits"])
    assert torch.equal(quantized.get_buffer("late.running_mean"), mean)
    quantized.eval()
    assert torch.allclose(quantized(**inputs)["logits"], mixed()(**inputs)["logits"], rtol=1e-4, atol=1e-5)


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.tanh(self.a(x)))
            return out

    quantized = prepare(Tied(), torch.randn(2, 4), Quantize(), reduced=False)
    assert len(list(quantized.parameters())) == 3
    assert {"a@0:weight", "b@0:weight"} <= set(quantized.quantizers)
