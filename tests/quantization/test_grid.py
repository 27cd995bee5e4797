"""The linear grid: exact zero, half a step, saturation, and agreement with ONNX Runtime bit for bit."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from paredown.graph.fake_quantize import fake_quantize
from paredown.quantization.grid import (
    ACTIVATIONS,
    WEIGHTS,
    WEIGHTS_REDUCED,
    Grid,
    channel_range,
    dequantize,
    quantize,
    scale_and_zero_point,
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
