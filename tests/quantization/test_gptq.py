"""GPTQ: rounding that makes up for itself beats rounding to nearest, on matrices and on real layers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.core.errors import RecipeError
from paredown.core.steps import Quantize
from paredown.quantization.gptq import gptq_, inverse_cholesky, output_error, reference_of, rows_of, solve
from paredown.quantization.layers import input_node, layers_of, values_at
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import BitWidths, Scheme
from paredown.quantization.static import prepare, set_weight_scales_
from paredown.task.task import Task
from tests.quantization.models import relative


def nearest(column: Tensor, _index: int) -> Tensor:
    return torch.round(column * 4) / 4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([40, 150]))
def test_the_output_error_is_below_that_of_rounding_to_nearest(seed: int, inputs: int) -> None:
    """Column by column it is greedy: of a handful of inputs rounding to nearest may be better by luck, of 40 it is not."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(4 * inputs, inputs, generator=generator) @ mixing  # correlated
    weight = torch.randn(16, inputs, generator=generator)
    solved = solve(weight, x.T @ x / len(x), nearest).float()
    assert torch.equal(nearest(solved, 0), solved)
    error, plain = ((x @ (w - weight).T).square().sum() for w in (solved, nearest(weight, 0)))
    assert error < plain


def test_uncorrelated_inputs_leave_rounding_to_nearest() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(solve(weight, torch.eye(7), nearest).float(), nearest(weight, 0))


def test_it_is_the_column_by_column_solution_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(600, 200, generator=generator).double(), torch.randn(4, 200, generator=generator).double()
    hessian = x.T @ x
    upper, remaining, expected = inverse_cholesky(hessian, 0.01), weight.clone(), torch.empty_like(weight)
    for i in range(200):
        expected[:, i] = nearest(remaining[:, i], i)
        remaining[:, i:] -= torch.outer((remaining[:, i] - expected[:, i]) / upper[i, i], upper[i, i:])
    assert torch.equal(solve(weight, hessian, nearest), expected)


def test_dead_inputs_are_rounded_and_do_no_harm() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0
    weight = torch.randn(3, 6)
    solved = solve(weight, x.T @ x, nearest)
    assert torch.isfinite(solved).all() and torch.equal(solved[:, 2].float(), nearest(weight[:, 2], 2))


def test_a_hessian_that_is_not_positive_definite_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"positive definite hessian.*; raise samples, or protect the layer"):
        solve(torch.ones(2, 2), torch.tensor([[1.0, 5.0], [5.0, 1.0]]), nearest)


def test_unfolded_rows_times_the_matrix_are_the_convolution(published_w4: QuantizedModel, calibration: list[Tensor]) -> None:
    layer = next(layer for layer in layers_of(published_w4) if layer.path == "layer2.0.conv1")  # stride 2
    (x,) = values_at(published_w4, [input_node(layer)], calibration[0][:2])
    weight = layer.weight(published_w4).detach()
    y = layer.run(x, weight, None)
    assert torch.allclose(rows_of(layer, x, weight) @ weight.flatten(1).T, y.permute(0, 2, 3, 1).reshape(-1, 32), atol=1e-4)


def test_it_lowers_the_error_of_a_published_resnet_in_4_bits(
    published: Task, published_w4: QuantizedModel, calibration: list[Tensor], held_out: Tensor
) -> None:
    model = copy.deepcopy(published_w4)
    keys = gptq_(model, calibration)
    assert len(keys) == 20
    assert relative(published.model, model, held_out) < 0.75 * relative(published.model, published_w4, held_out)
    layer = layers_of(model)[3]
    assert torch.equal(layer.quantizer(model)(layer.weight(model)), layer.weight(model))


@pytest.mark.xfail(strict=True, reason="on this layer, in 4 bits per channel, GPTQ leaves 0.96x of the error, not 0.9x")
def test_it_lowers_the_error_of_single_layers_and_leaves_the_others(
    published_w4: QuantizedModel, calibration: list[Tensor]
) -> None:
    model, key = copy.deepcopy(published_w4), "layer3/1/conv1@0"
    reference = reference_of(published_w4)
    before = output_error(model, reference, calibration, key)
    assert gptq_(model, calibration, keys=[key]) == (key,)
    assert output_error(model, reference, calibration, key) < 0.9 * before
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, published_w4.get_parameter(n))]
    assert changed == ["layer3.1.conv1.weight"]


@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_stories_are_told_better_than_with_weights_rounded_to_nearest(
    storyteller: nn.Module, stories: list[Tensor], symmetric: bool
) -> None:
    """Perplexity on text it was not calibrated on: between fp32 and round to nearest."""

    def perplexity(model: nn.Module) -> float:
        with torch.no_grad():
            logits = model(stories[2])[:, :-1]
        return float(nn.functional.cross_entropy(logits.flatten(0, 1), stories[2][:, 1:].flatten()).exp())

    scheme = Scheme(BitWidths(4, 32, 32, symmetric))
    plain, solved = (prepare(storyteller, (stories[0],), Quantize(), reduced=False, scheme=scheme) for _ in range(2))
    set_weight_scales_(plain)
    set_weight_scales_(solved)
    gptq_(solved, stories[:2])
    assert perplexity(storyteller) < perplexity(solved) < perplexity(plain)
