"""HQQ: without data, scales and zero points with a smaller error in the p-norm than round to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.core.steps import Quantize
from paredown.quantization.grid import linear_grid
from paredown.quantization.hqq import half_quadratic_scales, hqq_, lp_error, shrink
from paredown.quantization.layers import layers_of
from paredown.quantization.scheme import BitWidths, Scheme
from paredown.quantization.static import prepare, set_weight_scales_
from paredown.quantization.weights import extreme_scales, rounded
from tests.quantization.models import relative


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.booleans(), st.sampled_from([0, 16]))
def test_the_error_is_never_above_round_to_nearest(seed: int, bits: int, symmetric: bool, block: int) -> None:
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(seed))
    weight[0, 0] = 10.0
    grid = linear_grid(bits, symmetric=symmetric, signed=symmetric)
    found, plain = (rounded(weight, *f(weight, grid, block), grid, block) for f in (half_quadratic_scales, extreme_scales))
    assert lp_error(weight, found) <= lp_error(weight, plain) + 1e-7


def test_shrinking_removes_small_errors_and_keeps_large_ones() -> None:
    assert shrink(torch.tensor([0.0, 0.05, -0.05]), 10.0).tolist() == [0, 0, 0]
    large = shrink(torch.tensor([5.0, -5.0]), 10.0)
    assert torch.allclose(large, torch.tensor([5.0, -5.0]), atol=0.1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_lowers_the_error_of_a_language_model(storyteller: nn.Module, stories: list[Tensor], symmetric: bool) -> None:
    scheme = Scheme(BitWidths(4, 32, 32, symmetric))
    plain, found = (prepare(storyteller, (stories[0],), Quantize(), reduced=False, scheme=scheme) for _ in range(2))
    set_weight_scales_(plain)
    for layer in layers_of(plain):
        q = layer.quantizer(plain)
        q.set_(*extreme_scales(layer.weight(plain), q.grid, q.block))
    assert len(hqq_(found)) == 35
    assert relative(storyteller, found, stories[2]) < relative(storyteller, plain, stories[2])
