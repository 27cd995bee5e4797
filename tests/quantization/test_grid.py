"""The linear grid: exact zero, half a step, saturation, and agreement with ONNX Runtime bit for bit."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from paredown.core.errors import RecipeError
from paredown.graph.fake_quantize import fake_quantize
from paredown.quantization.grid import (
    ACTIVATIONS,
    WEIGHTS,
    WEIGHTS_REDUCED,
    Grid,
    block_range,
    channel_range,
    dequantize,
    dequantize_two_sided,
    linear_grid,
    per_entry,
    quantize,
    quantize_two_sided,
    scale_and_zero_point,
    two_sided_scales,
)

GRIDS = [ACTIVATIONS, WEIGHTS, WEIGHTS_REDUCED, Grid(-128, 127, symmetric=False)]
bounds = st.floats(-1e6, 1e6, width=32)
few = settings(max_examples=60, deadline=None)


def grid_for(low: float, high: float, grid: Grid) -> tuple[Tensor, Tensor]:
    return scale_and_zero_point(torch.tensor([min(low, high)]), torch.tensor([max(low, high)]), grid)


@few
@given(bounds, bounds, st.sampled_from(GRIDS))
def test_values_inside_the_range_come_back_within_half_a_step(low: float, high: float, grid: Grid) -> None:
    scale, zero_point = grid_for(low, high, grid)
    x = torch.linspace(min(low, high, 0.0), max(low, high, 0.0), 301)
    back = dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)
    assert ((back - x).abs() <= 0.5 * scale * (1 + 1e-4) + 1e-20).all()


@few
@given(bounds, bounds, st.sampled_from(GRIDS))
def test_zero_is_exact_and_the_zero_point_is_on_the_grid(low: float, high: float, grid: Grid) -> None:
    scale, zero_point = grid_for(low, high, grid)
    zero = torch.zeros(3)
    assert torch.equal(dequantize(quantize(zero, scale, zero_point, grid), scale, zero_point), zero)
    assert grid.low <= int(zero_point) <= grid.high
    assert not grid.symmetric or int(zero_point) == 0


@few
@given(bounds, bounds, st.sampled_from(GRIDS))
def test_rounding_is_monotone_and_idempotent(low: float, high: float, grid: Grid) -> None:
    scale, zero_point = grid_for(low, high, grid)
    x = torch.linspace(2 * min(low, high) - 1, 2 * max(low, high) + 1, 301)
    once = dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)
    assert (once.diff() >= 0).all()
    assert torch.equal(dequantize(quantize(once, scale, zero_point, grid), scale, zero_point), once)


def test_values_outside_the_range_saturate() -> None:
    scale, zero_point = grid_for(-1.0, 3.0, ACTIVATIONS)
    assert quantize(torch.tensor([-100.0, 100.0, -torch.inf, torch.inf]), scale, zero_point, ACTIVATIONS).tolist() == [
        0,
        255,
        0,
        255,
    ]


def test_a_range_above_zero_reaches_down_to_zero_with_zero_point_low() -> None:
    scale, zero_point = grid_for(2.0, 5.1, ACTIVATIONS)
    assert scale.item() == pytest.approx(5.1 / 255)
    assert zero_point.item() == 0


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39, -1e-38])
@pytest.mark.parametrize("grid", GRIDS)
def test_empty_and_subnormal_ranges_get_a_harmless_scale(value: float, grid: Grid) -> None:
    scale, zero_point = grid_for(value, value, grid)
    x = torch.tensor([value, 0.0])
    assert scale.item() == 1.0
    assert torch.equal(dequantize(quantize(x, scale, zero_point, grid), scale, zero_point), torch.zeros(2))


def test_the_largest_floats_do_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max
    scale, zero_point = grid_for(-largest, largest, ACTIVATIONS)
    assert torch.isfinite(scale).all()
    assert zero_point.item() in (127, 128)


def test_channels_have_their_own_scale_and_dead_ones_none() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0], [0.5, 0.25]])
    scale, zero_point = scale_and_zero_point(*channel_range(weight), WEIGHTS)
    assert scale.tolist() == pytest.approx([2 / 127, 1.0, 0.5 / 127])
    q = quantize(weight, scale, zero_point, WEIGHTS, axis=0)
    assert q.tolist() == [[64, -127], [0, 0], [127, 64]]  # 63.5 rounds to the even 64


def test_channel_range_reads_any_axis_and_rank() -> None:
    weight = torch.arange(24.0).view(2, 3, 4)
    low, high = channel_range(weight, axis=1)
    assert (low.tolist(), high.tolist()) == ([0, 4, 8], [15, 19, 23])
    assert channel_range(torch.tensor([3.0, -1.0]))[0].tolist() == [3, -1]


def test_the_operator_equals_quantize_then_dequantize() -> None:
    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0)) * 3
    scale, zero_point = scale_and_zero_point(*channel_range(x, 1), Grid(-128, 127, symmetric=False))
    expected = dequantize(quantize(x, scale, zero_point, Grid(-100, 90, symmetric=False), 1), scale, zero_point, 1)
    assert torch.equal(fake_quantize(x, scale, zero_point, 1, -100, 90), expected)


def session(axis: int | None, kind: int, opset: int = 21) -> onnxruntime.InferenceSession:
    """(x, scale, zero point) -> the integers and the floats they stand for."""
    along = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **along),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **along),
    ]
    rank = None if axis is not None else []
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, ["c"] if rank is None else rank),
        helper.make_tensor_value_info("z", kind, ["c"] if rank is None else rank),
    ]
    outputs = [helper.make_tensor_value_info("q", kind, None), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(helper.make_graph(nodes, "grid", inputs, outputs), opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx.load_from_string(model.SerializeToString()).SerializeToString(), options)


PER_TENSOR, PER_CHANNEL = session(None, TensorProto.UINT8), session(1, TensorProto.INT8)


@few
@given(bounds, bounds, st.integers(0, 2**31))
def test_per_tensor_agrees_with_onnxruntime_bit_for_bit(low: float, high: float, seed: int) -> None:
    scale, zero_point = grid_for(low, high, ACTIVATIONS)
    x = torch.randn(257, generator=torch.Generator().manual_seed(seed)) * 100 * scale
    x[:64] = (torch.arange(64) - 32.5) * scale  # halves
    q, y = PER_TENSOR.run(None, {"x": x.numpy(), "s": scale[0].numpy(), "z": zero_point[0].numpy().astype(np.uint8)})
    ours = quantize(x, scale, zero_point, ACTIVATIONS)
    assert np.array_equal(ours.numpy(), q)
    assert np.array_equal(dequantize(ours, scale, zero_point).numpy(), y)


@few
@given(st.integers(0, 2**31))
def test_per_channel_agrees_with_onnxruntime_bit_for_bit(seed: int) -> None:
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed))
    grid = Grid(-128, 127, symmetric=False)
    scale, zero_point = scale_and_zero_point(*(r * 0.7 for r in channel_range(x, 1)), grid)
    q, y = PER_CHANNEL.run(None, {"x": x.numpy(), "s": scale.numpy(), "z": zero_point.numpy().astype(np.int8)})
    ours = quantize(x, scale, zero_point, grid, 1)
    assert np.array_equal(ours.numpy(), q)
    assert np.array_equal(dequantize(ours, scale, zero_point, 1).numpy(), y)


every_grid = st.builds(
    lambda bits, symmetric, signed, narrow, two: linear_grid(
        bits, symmetric=symmetric, signed=signed, narrow=narrow and signed, power_of_two=two
    ),
    st.integers(2, 16), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip


@pytest.mark.parametrize(
    "bits, signed, narrow, ends",
    [(2, True, False, (-2, 1)), (2, True, True, (-1, 1)), (4, False, False, (0, 15)), (16, True, False, (-32768, 32767))],
)
def test_a_grid_of_n_bits_spans_its_integers(bits: int, signed: bool, narrow: bool, ends: tuple[int, int]) -> None:
    grid = linear_grid(bits, signed=signed, narrow=narrow)
    assert (grid.low, grid.high) == ends
    assert (grid.levels, grid.bits) == (ends[1] - ends[0] + 1, bits)


@pytest.mark.parametrize("bits", [1, 17, 8.0, True])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(RecipeError, match=r"bits must be a whole number in \[2, 16\].*; 8 runs in integers"):
        linear_grid(bits)
    with pytest.raises(RecipeError, match="a narrow grid is signed"):
        linear_grid(4, signed=False, narrow=True)


@few
@given(bounds, bounds, every_grid)
def test_every_grid_is_exact_at_zero_monotone_idempotent_and_within_half_a_step(low: float, high: float, grid: Grid) -> None:
    scale, zero_point = grid_for(low, high, grid)
    x = torch.linspace(2 * min(low, high) - 1, 2 * max(low, high) + 1, 301)
    q = quantize(x, scale, zero_point, grid)
    once = dequantize(q, scale, zero_point)
    assert grid.low <= int(q.min()) and int(q.max()) <= grid.high
    assert dequantize(quantize(torch.zeros(1), scale, zero_point, grid), scale, zero_point).item() == 0
    assert (once.diff() >= 0).all()
    assert torch.equal(dequantize(quantize(once, scale, zero_point, grid), scale, zero_point), once)
    inside = (x >= (grid.low - zero_point) * scale) & (x <= (grid.high - zero_point) * scale)
    assert ((once - x).abs()[inside] <= (0.5 + 2e-7 * grid.levels) * scale + 1e-20).all()


@few
@given(bounds, bounds, every_grid)
def test_the_range_is_on_the_grid_up_to_half_a_step(low: float, high: float, grid: Grid) -> None:
    scale, zero_point = grid_for(low, high, grid)
    ends = [v for v in (min(low, high, 0.0), max(low, high, 0.0)) if v >= 0 or not (grid.symmetric and grid.low == 0)]
    back = dequantize(quantize(torch.tensor(ends), scale, zero_point, grid), scale, zero_point)
    assert ((back - torch.tensor(ends)).abs() <= (0.5 + 2e-7 * grid.levels) * scale + 1e-15).all()


@few
@given(st.floats(1e-10, 1e10))
def test_power_of_two_scales_are_the_next_power_above(width: float) -> None:
    exact, _ = scale_and_zero_point(torch.tensor([0.0]), torch.tensor([width]), linear_grid(6))
    scale, _ = scale_and_zero_point(torch.tensor([0.0]), torch.tensor([width]), linear_grid(6, power_of_two=True))
    assert float(scale).hex().startswith(("0x1.0000000000000p", "0x1.0p"))
    assert 1 - 1e-6 <= (scale / exact).item() < 2


@few
@given(bounds, bounds, st.integers(2, 16), st.integers(0, 2**31))
def test_the_two_sided_grid_gives_each_sign_its_whole_range(low: float, high: float, bits: int, seed: int) -> None:
    grid, (a, b) = linear_grid(bits), (min(low, high, 0.0), max(low, high, 0.0))
    negative, positive = two_sided_scales(torch.tensor([a]), torch.tensor([b]), grid)
    x = a + (b - a) * torch.rand(200, generator=torch.Generator().manual_seed(seed))
    x[:3] = torch.tensor([a, 0.0, b])
    q = quantize_two_sided(x, negative, positive, grid)
    back = dequantize_two_sided(q, negative, positive)
    step = torch.where(x < 0, negative, positive)
    assert ((back - x).abs() <= (0.5 + 2e-7 * grid.levels) * step + 1e-15).all()
    assert back[1] == 0
    assert torch.equal(dequantize_two_sided(quantize_two_sided(back, negative, positive, grid), negative, positive), back)
    assert (back[x.argsort()].diff() >= 0).all()


def test_the_two_sided_grid_beats_a_zero_point_on_a_lopsided_tensor() -> None:
    x = torch.cat([torch.randn(4000).abs(), -0.01 * torch.randn(4000).abs()])
    ends = x.min().view(1), x.max().view(1)
    grid, sided = linear_grid(4, symmetric=False), linear_grid(4)
    scale, zero_point = scale_and_zero_point(*ends, grid)
    affine = dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)
    scales = two_sided_scales(*ends, sided)
    both = dequantize_two_sided(quantize_two_sided(x, *scales, sided), *scales)
    assert ((both - x)[4000:].norm()) < 0.2 * ((affine - x)[4000:].norm())


@pytest.mark.parametrize("shape, block", [((3, 64), 32), ((4, 5, 3, 3), 32), ((2, 70), 64), ((3, 16), 128)])
def test_groups_are_rounded_each_on_its_own(shape: tuple[int, ...], block: int) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    grid = linear_grid(4)
    scale, zero_point = scale_and_zero_point(*block_range(weight, block), grid)
    entries = weight[0].numel()
    assert scale.shape == (shape[0], -(-entries // block))
    rounded = fake_quantize(weight, scale, zero_point, 1, grid.low, grid.high, block)
    s, z = per_entry(scale, weight, block), per_entry(zero_point, weight, block)
    flat = weight.flatten(1)
    assert torch.equal(rounded.flatten(1), ((torch.round(flat / s) + z).clamp(grid.low, grid.high) - z) * s)
    last = flat[-1, block * (scale.shape[1] - 1) :]
    alone, _ = scale_and_zero_point(last.min(), last.max(), grid)
    assert alone == scale[-1, -1]


def reference(q_type: int, axis: int | None, block: int = 0) -> ReferenceEvaluator:
    along = ({} if axis is None else {"axis": axis}) | ({"block_size": block} if block else {})
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **along),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **along),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("z", q_type, None),
    ]
    outputs = [helper.make_tensor_value_info("q", q_type, None), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "grid", inputs, outputs)
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


TYPES = [
    (TensorProto.INT4, linear_grid(4, symmetric=False)),
    (TensorProto.UINT4, linear_grid(4, symmetric=False, signed=False)),
    (TensorProto.INT8, linear_grid(8, symmetric=False)),
    (TensorProto.UINT8, linear_grid(8, symmetric=False, signed=False)),
    (TensorProto.INT16, linear_grid(16, symmetric=False)),
    (TensorProto.UINT16, linear_grid(16, symmetric=False, signed=False)),
]


@pytest.mark.parametrize("kind, grid", TYPES)
@pytest.mark.parametrize("axis", [None, 1])
def test_four_to_sixteen_bits_agree_with_the_onnx_reference_bit_for_bit(kind: int, grid: Grid, axis: int | None) -> None:
    x = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(kind))
    ends = channel_range(x, 1) if axis is not None else (x.min().view(1), x.max().view(1))
    scale, zero_point = scale_and_zero_point(*(0.7 * end for end in ends), grid)
    step = scale if axis is None else scale.view(1, -1, 1)
    x[..., :16] = (torch.arange(16) - 7.5) * step  # halves
    shape = () if axis is None else (-1,)
    kind_of = helper.tensor_dtype_to_np_dtype(kind)
    feeds = {"x": x.numpy(), "s": scale.reshape(shape).numpy(), "z": zero_point.reshape(shape).numpy().astype(kind_of)}
    q, y = reference(kind, axis).run(None, feeds)
    along = -1 if axis is None else axis
    ours = quantize(x, scale, zero_point, grid, along)
    assert np.array_equal(ours.numpy(), q.astype(np.int32))
    assert np.array_equal(dequantize(ours, scale, zero_point, along).numpy(), y)
    assert int(ours.min()) == grid.low and int(ours.max()) == grid.high  # something saturated


def test_groups_agree_with_the_blocked_operators_of_onnx() -> None:
    grid = linear_grid(4)
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    scale, zero_point = scale_and_zero_point(*block_range(weight, 32), grid)
    zeros = zero_point.numpy().astype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4))
    _, y = reference(TensorProto.INT4, 1, 32).run(None, {"x": weight.numpy(), "s": scale.numpy(), "z": zeros})
    assert np.array_equal(fake_quantize(weight, scale, zero_point, 1, grid.low, grid.high, 32).numpy(), y)
