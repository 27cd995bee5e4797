"""SmoothQuant: outlier channels of activations move into the weights, and int8 loses less."""

import copy

import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import RecipeError
from paredown.core.steps import Activations, Quantize
from paredown.quantization.layers import unquantized
from paredown.quantization.model import QuantizedModel
from paredown.quantization.smooth import smooth_, smoothing_scales
from paredown.quantization.static import calibrate_, prepare
from paredown.task.task import Task
from tests.quantization.models import relative


@pytest.fixture(scope="module")
def with_outliers(storyteller: nn.Module) -> nn.Module:
    """The same function, but two channels behind each norm are 30 times larger, and their weights smaller: as in OPT."""
    model = copy.deepcopy(storyteller)
    with torch.no_grad():
        for layer in model.layers:  # type: ignore[union-attr]  # a ModuleList
            for norm, readers in (("n1", "qkv"), ("n2", ("w1", "w3"))):
                layer[norm].weight[[3, 40]] *= 30
                for reader in readers:
                    layer[reader].weight[:, [3, 40]] /= 30
    return model


def quantized(model: nn.Module, stories: list[Tensor], alpha: float | None) -> QuantizedModel:
    batches = [(x, None) for x in stories[:2]]
    task = Task(model, (stories[0],), batches, [(stories[0], stories[0])], metric=lambda o, _: o.mean((1, 2)))
    made = prepare(model, (stories[0],), Quantize(activations=Activations(observer="minmax")), reduced=False)
    if alpha is not None:
        assert smooth_(made, stories[:2], alpha=alpha) == 10
        with unquantized(made):
            assert relative(model, made, stories[0]) < 1e-5
    calibrate_(made, task)
    return made


def test_it_lowers_the_error_of_a_transformer_with_outliers(with_outliers: nn.Module, stories: list[Tensor]) -> None:
    plain, smooth = (relative(with_outliers, quantized(with_outliers, stories, a), stories[2]) for a in (None, 0.5))
    assert smooth < 0.5 * plain


def test_alpha_1_moves_all_of_the_range_and_alpha_0_none_of_it() -> None:
    activations, weights = torch.tensor([4.0, 0.5, 0.0]), torch.tensor([2.0, 0.25, 1.0])
    assert smoothing_scales(activations, weights, 1.0).tolist() == [4.0, 0.5, 1.0]
    assert smoothing_scales(activations, weights, 0.0).tolist() == [0.5, 4.0, 1.0]
    half = smoothing_scales(activations, weights, 0.5)[:2]
    assert torch.allclose(activations[:2] / half, weights[:2] * half, rtol=1e-6)


def test_alpha_must_be_a_fraction(storyteller: nn.Module, stories: list[Tensor]) -> None:
    made = prepare(storyteller, (stories[0],), Quantize(), reduced=False)
    with pytest.raises(RecipeError, match=r"alpha must be in \[0, 1\], got 2"):
        smooth_(made, stories[:1], alpha=2)
