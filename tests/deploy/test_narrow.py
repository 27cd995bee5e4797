"""Packing of weights below 8 bits: what is unpacked at load is what was packed, and it takes fewer bytes."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from paredown.deploy.narrow import narrow_weights_, narrowest, packed_words


def model_of(value: np.ndarray) -> onnx.ModelProto:
    """DequantizeLinear of an int8 constant, with scale 1."""
    initializers = [numpy_helper.from_array(value, "w"), numpy_helper.from_array(np.float32(1), "s")]
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["y"], name="y")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, value.shape)
    return helper.make_model(
        helper.make_graph(nodes, "g", [], [output], initializers), opset_imports=[helper.make_opsetid("", 21)]
    )


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([2, 3]), st.lists(st.integers(-4, 3), min_size=1, max_size=45))
def test_words_hold_every_number_in_order(bits: int, numbers: list[int]) -> None:
    value = np.clip(np.array(numbers, np.int8), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    words = packed_words(value, bits).astype(np.int64)
    count = {3: 10, 2: 4}[bits]
    fields = words // 2 ** (bits * np.arange(count)) % 2**bits - 2 ** (bits - 1)
    assert fields.reshape(-1)[: len(value)].tolist() == value.tolist()


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("bits, size", [(4, 400), (3, 24_001), (2, 24_003), (8, 400)])
def test_the_unpacked_weight_is_the_stored_one(bits: int, size: int, kind: type) -> None:
    lowest = 0 if kind is np.uint8 else -(2 ** (bits - 1))
    value = np.random.default_rng(0).integers(lowest, lowest + 2**bits, (1, size)).astype(kind)
    model = model_of(value)
    before = model.ByteSize()
    assert narrow_weights_(model) == (bits < 8)
    (found,) = ReferenceEvaluator(model).run(None, {})
    assert np.array_equal(found, value)
    held = [t for t in model.graph.initializer if t.name != "w"]  # the int8 one is dropped later, with all that is dead
    assert bits == 8 or sum(t.ByteSize() for t in held) < before


@pytest.mark.parametrize(
    "value, bits",
    [
        (np.zeros(10, np.int8), 8),  # the operators would take more than they save
        (np.zeros(10_000, np.int8), 2),
        (np.full(10_000, 3, np.int8), 3),
        (np.full(10_000, 7, np.int8), 4),
        (np.full(1_000, 1, np.int8), 4),
        (np.full(10_000, 8, np.int8), 8),
        (np.zeros(0, np.int8), 8),
    ],
)
def test_the_form_with_the_fewest_bytes_is_taken(value: np.ndarray, bits: int) -> None:
    assert narrowest(value) == bits
