"""Layers one by one, and parts of a graph that run alone: the same values as in the whole."""

import torch
from torch import Tensor

from paredown.core.steps import Quantize
from paredown.quantization.layers import input_node, layers_of, part_of, unquantized, values_at, write_rounded_
from paredown.quantization.model import QuantizedModel
from paredown.quantization.reconstruction import parts_of
from paredown.quantization.static import prepare, quantize_model
from tests.conftest import make_small_resnet
from tests.quantization.models import mixed, mixed_inputs
from tests.quantization.test_static import data, task_of


def small() -> QuantizedModel:
    model = make_small_resnet()
    return quantize_model(model, task_of(model), Quantize(), reduced=True)


def test_a_layer_gives_alone_what_it_gives_in_the_model() -> None:
    model, x = small(), data()[0][0]
    for layer in layers_of(model):
        with unquantized(model):
            seen, given = values_at(model, [input_node(layer), layer.node], x)
        bias = layer.bias(model)
        assert torch.equal(layer.run(seen, layer.weight(model), bias), given)
    assert [layer.path for layer in layers_of(model)][:2] == ["stem.0", "block1.conv1"]


def test_quantizers_are_on_again_afterwards() -> None:
    model, x = small(), data()[0][0]
    before = model(x)
    with unquantized(model):
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)


def test_parts_give_what_they_give_in_the_model() -> None:
    model, x = small(), data()[0][0]
    for block in parts_of(model, ("block1", "block2")):
        part = part_of(model, block.nodes)
        *sources, given = values_at(model, [*part.sources, part.result], x)
        with torch.no_grad():
            assert torch.equal(part.module(*sources), given)


def test_a_part_shares_its_weights_with_the_model() -> None:
    model = small()
    layer = layers_of(model)[1]
    part = part_of(model, [layer.node])
    assert part.module.get_parameter(layer.weight_path) is layer.weight(model)


def test_inputs_by_name_arrive_in_the_order_of_the_graph() -> None:
    model, inputs = prepare(mixed(), mixed_inputs(4), Quantize(), reduced=False), mixed_inputs(4, seed=1)
    places = [node for node in model.graph.nodes if node.op == "placeholder"]
    with unquantized(model):
        seen: list[Tensor] = values_at(model, places, dict(reversed(inputs.items())))
    assert all(torch.equal(a, b) for a, b in zip(seen, inputs.values(), strict=True))


def test_written_weights_lie_on_the_grid() -> None:
    model = small()
    layer = layers_of(model)[0]
    write_rounded_(model, layer, layer.weight(model) * 1.3)
    weight = layer.weight(model)
    assert torch.equal(layer.quantizer(model)(weight), weight)
