"""Cross-layer equalization: the function stays, the ranges of both layers become equal, coarse grids lose less."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.core.steps import Activations, Quantize
from paredown.quantization.equalization import equalize_, equalizing_scales
from paredown.quantization.layers import layers_of, unquantized
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scaling import input_magnitudes, rescale_, scalings_of, times_inputs
from paredown.quantization.scheme import BitWidths, Scheme
from paredown.quantization.static import calibrate_, prepare
from paredown.task.task import Task
from tests.quantization.models import relative

magnitudes = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(magnitudes, st.integers(0, 2**31))
def test_scales_make_both_ranges_equal(first: list[float], seed: int) -> None:
    r1 = torch.tensor(first, dtype=torch.float64)
    r2 = torch.rand(len(first), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    s = equalizing_scales(r1, r2)
    assert torch.allclose(r1 / s, r2 * s)


def test_dead_channels_are_left_alone() -> None:
    assert equalizing_scales(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])).tolist() == [1, 1, 1]


def test_input_channels_of_grouped_convolutions_are_scaled_in_their_group() -> None:
    torch.manual_seed(0)
    conv, x, s = nn.Conv2d(6, 4, 3, groups=2), torch.randn(2, 6, 5, 5), torch.rand(6) + 0.5
    expected = nn.functional.conv2d(x * s.view(1, -1, 1, 1), conv.weight, conv.bias, groups=2)
    found = nn.functional.conv2d(x, times_inputs(conv.weight, s, 2), conv.bias, groups=2)
    assert torch.allclose(found, expected, atol=1e-5)
    assert input_magnitudes(conv.weight, 2).shape == (6,)
    assert input_magnitudes(conv.weight, 2)[4] == conv.weight[2:, 1].abs().max()


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise, as in MobileNets; the channels' ranges differ by three orders of magnitude."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        spread = torch.logspace(-1.5, 1.5, 16)
        with torch.no_grad():
            for p in (self.a.weight, self.a.bias, self.b.weight, self.b.bias):
                p.mul_(spread.view(-1, *[1] * (p.dim() - 1)))
            self.c.weight.div_((spread**2).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return out


def prepared(model: nn.Module, x: Tensor) -> tuple[QuantizedModel, Task]:
    task = Task(
        model,
        (x[:4],),
        [(x, torch.zeros(len(x)))],
        [(x, torch.zeros(len(x)))],
        metric=lambda o, _: o.mean((1, 2, 3)),
        loss=lambda o, _: o.square().mean(),
    )
    return prepare(
        model, (x[:4],), Quantize(activations=Activations(observer="minmax")), reduced=False, scheme=Scheme(BitWidths(8, 8))
    ), task


def test_it_rescues_a_model_whose_channels_have_different_ranges() -> None:
    model, x = Depthwise().eval(), torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plain, task = prepared(model, x)
    calibrate_(plain, task)
    equal, _ = prepared(model, x)
    assert equalize_(equal) == 2
    calibrate_(equal, task)
    assert relative(model, equal, x) < 0.3 * relative(model, plain, x)


def test_the_function_of_a_published_resnet_stays_what_it_was(
    published: Task, published_w4: QuantizedModel, held_out: Tensor
) -> None:
    model = copy.deepcopy(published_w4)
    assert equalize_(model) == 9  # conv1 > relu > conv2 in each block; the sums of the residual stream are in no pair
    with unquantized(model):
        assert relative(published.model, model, held_out) < 1e-5
    pair = scalings_of(model)[0]
    first = model.get_parameter(pair.makers[0]).detach().abs().flatten(1).amax(1)
    second = input_magnitudes(pair.readers[0].weight(model))
    assert torch.allclose(first, second, rtol=2e-2)


def test_pairs_share_no_parameter_with_others() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.relu(self.a(torch.relu(self.a(x)))))
            return out

    model = prepare(Shared(), torch.randn(2, 4), Quantize(), reduced=False)
    assert scalings_of(model) == ()


def square(x: Tensor) -> Tensor:
    return x * x


def pool(x: Tensor) -> Tensor:
    """Over the features: a scale per channel is none behind it."""
    return torch.nn.functional.avg_pool1d(x.unsqueeze(1), 3, 1, 1).squeeze(1)


@pytest.mark.parametrize("between", [torch.tanh, torch.nn.functional.gelu, lambda x: torch.relu(x) + 1, square, pool])
def test_what_is_not_homogeneous_between_two_layers_makes_no_pair(between) -> None:  # type: ignore[no-untyped-def]
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(between(self.a(x)))
            return out

    assert scalings_of(prepare(Other(), torch.randn(2, 4), Quantize(), reduced=False)) == ()


def test_moving_any_scale_keeps_the_function_of_a_transformer(storyteller: nn.Module, stories: list[Tensor]) -> None:
    model = prepare(storyteller, (stories[0],), Quantize(), reduced=False)
    scalings = scalings_of(model)
    assert len(scalings) == 15  # the two norms of each of 5 layers, and the gate of each SwiGLU
    generator = torch.Generator().manual_seed(0)
    for scaling in scalings:
        rescale_(model, scaling, torch.rand(scaling.channels, generator=generator) + 0.5)
    with unquantized(model):
        assert relative(storyteller, model, stories[0]) < 1e-5
    assert len(layers_of(model)) == 35
