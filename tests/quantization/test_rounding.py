"""AdaRound and block reconstruction: learned rounding beats the nearest, on real layers and blocks."""

import copy

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown.core.errors import BatchError, RecipeError
from paredown.quantization.gptq import output_error, reference_of
from paredown.quantization.grid import linear_grid
from paredown.quantization.layers import layers_of, node_named, part_of, unquantized, values_at
from paredown.quantization.model import FakeQuantizer, QuantizedModel
from paredown.quantization.reconstruction import named_blocks, parts_of, reconstruct_
from paredown.quantization.rounding import Rounding, SoftRounding, adaround_, learn_
from paredown.quantization.weights import extreme_scales
from paredown.task.task import Task
from tests.quantization.models import relative

QUICK = Rounding(steps=120, samples=16)
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]


def softened(block: int = 0) -> tuple[Tensor, FakeQuantizer, SoftRounding]:
    weight = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    shape, axis = ((4, 3), 1) if block else ((4,), 0)
    quantizer = FakeQuantizer(linear_grid(4), shape, axis, block)
    quantizer.set_(*extreme_scales(weight, quantizer.grid, block))
    return weight, quantizer, SoftRounding(weight, quantizer)


@pytest.mark.parametrize("block", [0, 8])
def test_it_begins_with_the_weight_itself_and_ends_at_the_nearest_if_nothing_is_learned(block: int) -> None:
    weight, quantizer, soft = softened(block)
    assert torch.allclose(soft(weight), weight, atol=1e-4)
    assert torch.equal(soft.rounded(), quantizer(weight))


def test_the_penalty_is_zero_only_at_whole_steps() -> None:
    _, _, soft = softened()
    assert soft.penalty(2.0) > 1
    with torch.no_grad():
        soft.v.copy_(torch.where(soft.v > 0, 20.0, -20.0))
    assert soft.penalty(2.0) == 0
    assert soft.penalty(20.0) == 0


def test_adaround_lowers_the_error_of_a_layer_on_images_it_has_not_seen(
    published_w4: QuantizedModel, calibration: list[Tensor], held_out: Tensor
) -> None:
    model, key = copy.deepcopy(published_w4), "layer3/1/conv1@0"
    reference = reference_of(published_w4)
    before = output_error(model, reference, [held_out], key)
    assert adaround_(model, calibration, QUICK, keys=[key]) == (key,)
    assert output_error(model, reference, [held_out], key) < 0.9 * before
    weight = model.get_parameter("layer3.1.conv1.weight")
    q = model.quantizer(f"{key}:weight")
    assert torch.equal(q(weight), weight)
    moved = (weight - published_w4.get_parameter("layer3.1.conv1.weight")).abs() / q.scale.view(-1, 1, 1, 1)
    clipped = (weight / q.scale.view(-1, 1, 1, 1)).round()
    inside = (clipped > q.grid.low) & (clipped < q.grid.high)
    assert moved[inside].max() < 1 + 1e-3  # up or down, never further


def test_the_graph_of_the_float_model_names_the_blocks(published: Task) -> None:
    assert set(BLOCKS) <= set(named_blocks(published.model, published.inputs, None))


def test_a_block_gets_nearer_to_its_original_on_images_it_has_not_seen(
    published_w4: QuantizedModel, calibration: list[Tensor], held_out: Tensor
) -> None:
    model, reference = copy.deepcopy(published_w4), reference_of(published_w4)
    block = next(b for b in parts_of(model, BLOCKS) if b.path == "layer2.1")
    with unquantized(reference):
        (wanted,) = values_at(reference, [node_named(reference, block.nodes[-1].name)], held_out)

    def error() -> float:
        return float((values_at(model, [block.nodes[-1]], held_out)[0] - wanted).norm() / wanted.norm())

    before = error()
    learn_(model, reference, part_of(model, block.nodes), block.layers, calibration, QUICK)
    assert error() < 0.95 * before


def test_blocks_are_the_residual_blocks_and_single_layers(published_w4: QuantizedModel) -> None:
    blocks = parts_of(published_w4, BLOCKS)
    assert [b.path for b in blocks][:3] == ["conv1", "layer1.0", "layer1.1"]
    assert [len(b.layers) for b in blocks] == [1, *[2] * 9, 1]
    assert [layer.key for b in blocks for layer in b.layers] == [layer.key for layer in layers_of(published_w4)]


@pytest.mark.slow
def test_both_lower_the_error_of_the_whole_model(
    published: Task, published_w4: QuantizedModel, calibration: list[Tensor], held_out: Tensor
) -> None:
    before = relative(published.model, published_w4, held_out)
    layerwise, blockwise = copy.deepcopy(published_w4), copy.deepcopy(published_w4)
    adaround_(layerwise, calibration, QUICK)
    reconstruct_(blockwise, calibration, BLOCKS, QUICK)
    assert relative(published.model, layerwise, held_out) < 0.7 * before
    assert relative(published.model, blockwise, held_out) < 0.7 * before


def test_reconstruction_lowers_the_error_of_a_small_model(
    trained_small_resnet,
    pattern_task: Task,  # type: ignore[no-untyped-def]
) -> None:
    from paredown.core.steps import Quantize
    from paredown.quantization.scheme import BitWidths, Scheme
    from paredown.quantization.static import quantize_model

    model = quantize_model(trained_small_resnet, pattern_task, Quantize(), reduced=True, scheme=Scheme(BitWidths(3, 8)))
    x = pattern_task.validation[0][0]  # type: ignore[index]  # a list
    before = relative(trained_small_resnet, model, x)
    inputs = [inputs for inputs, _ in list(pattern_task.train)[:4]]
    paths = reconstruct_(model, inputs, ("block1", "block2"), Rounding(steps=200, samples=64))
    assert paths == ("stem.0", "block1", "block2", "head")
    assert relative(trained_small_resnet, model, x) < 0.8 * before


def test_bad_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match="steps must be a whole number of at least 1, got 0"):
        Rounding(steps=0)
    with pytest.raises(RecipeError, match=r"warmup must be in \[0, 1\], got 2"):
        Rounding(warmup=2)


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x))).mean(1)
        return out


def test_samples_of_several_lengths_are_refused_with_their_shapes() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(4, length, 8), torch.zeros(4, dtype=torch.int64)) for length in (5, 7)]
    task = Task(Averaged(), (batches[0][0][:2],), batches, batches, dynamic={"x": {1: "length"}})
    with pytest.raises(BatchError, match=r"samples of one shape, got \(5, 16\) and \(7, 16\)"):
        paredown.quantize(task, paredown.Quantize(refine=("adaround",)))
