"""Bits by layer: what a scheme says is what the graph carries, and it survives as plain data."""

import copy
import json
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.core.errors import RecipeError
from paredown.core.steps import Quantize
from paredown.graph.trace import path_of
from paredown.quantization.grid import WEIGHTS, WEIGHTS_REDUCED
from paredown.quantization.model import QuantizedModel
from paredown.quantization.scheme import BitWidths, Scheme, activation_grid, weight_grid
from paredown.quantization.static import prepare, quantize_model, set_weight_scales_
from paredown.task.task import Task
from tests.conftest import SmallResNet, make_small_resnet
from tests.quantization.models import Recurrent, relative
from tests.quantization.test_static import data, task_of

widths = st.builds(
    BitWidths, st.sampled_from([2, 3, 4, 8, 16, 32]), st.sampled_from([4, 8, 32]), st.sampled_from([0, 32, 128]), st.booleans()
)


def quantized(scheme: Scheme, model: nn.Module | None = None) -> QuantizedModel:
    model = model or make_small_resnet()
    return quantize_model(model, task_of(model), Quantize(), reduced=True, scheme=scheme)


@settings(max_examples=30, deadline=None)
@given(widths, st.dictionaries(st.text("ab.", max_size=4), widths, max_size=3), st.booleans())
def test_a_scheme_survives_json(default: BitWidths, layers: dict[str, BitWidths], embeddings: bool) -> None:
    scheme = Scheme(default, layers, embeddings)
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


def test_the_nearest_named_module_decides() -> None:
    scheme = Scheme(BitWidths(8), {"a": BitWidths(4), "a.b": BitWidths(2)})
    assert [scheme.of(p).weight_bits for p in ("a", "a.c.d", "a.b.c", "ab", "")] == [4, 4, 2, 8, 8]
    assert path_of("layer1/0/conv1@0:weight") == "layer1.0.conv1"


@pytest.mark.parametrize("bad", [{"weight_bits": 1}, {"activation_bits": 20}, {"weight_bits": 8.0}, {"group": 4}])
def test_impossible_widths_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=r"must be (in \[2, 16\], or 32 for float|0 or at least 8), got .*; "):
        BitWidths(**bad)


def test_a_scheme_that_is_not_one_is_refused() -> None:
    with pytest.raises(RecipeError, match="a scheme is a mapping of default, layers and embeddings"):
        Scheme.from_dict({"default": {"bits": 3}, "layers": {}, "embeddings": False})
    with pytest.raises(RecipeError, match=r"a scheme must name modules of the model, got stm; see model\.named_modules"):
        quantized(Scheme(layers={"stm": BitWidths(4)}))


def test_grids_follow_the_widths() -> None:
    assert weight_grid(BitWidths(8), reduced=True) == WEIGHTS_REDUCED and weight_grid(BitWidths(8), reduced=False) == WEIGHTS
    assert (weight_grid(BitWidths(4), reduced=True).low, weight_grid(BitWidths(4), reduced=True).high) == (-8, 7)
    assert (weight_grid(BitWidths(4, symmetric=False), reduced=True).low, activation_grid(4).high) == (0, 15)


def test_without_a_scheme_nothing_changes() -> None:
    model = make_small_resnet()
    plain = quantize_model(model, task_of(model), Quantize(), reduced=True)
    assert plain.scheme == Scheme()
    states = plain.state_dict(), quantized(Scheme()).state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_weights_and_activations_take_no_more_values_than_their_bits_allow(bits: int) -> None:
    model = quantized(Scheme(BitWidths(bits, bits)))
    q = model.quantizer("block1/conv1@0:weight")
    weight = model.get_parameter("block1.conv1.weight").detach()
    assert all(len(row.unique()) <= 2**bits for row in q(weight).flatten(1))
    seen: list[Tensor] = []
    model.quantizer("stem/0@0:input").register_forward_hook(lambda _m, _a, y: seen.append(y))
    model(data()[0][0])
    assert 1 < len(seen[0].unique()) <= 2**bits


def test_more_bits_are_nearer_to_the_original() -> None:
    model = make_small_resnet()
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    errors = [relative(model, quantized(Scheme(BitWidths(bits, 8)), model), x) for bits in (2, 3, 4, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1


def test_each_layer_has_its_own_widths() -> None:
    scheme = Scheme(BitWidths(8, 8), {"block1": BitWidths(4, 4), "block2.conv1": BitWidths(3, 8, 32), "head": BitWidths(32)})
    model = quantized(scheme)
    grids = {key: q.grid.bits for key, q in ((k, model.quantizer(k)) for k in model.quantizers)}
    assert (grids["block1/conv1@0:weight"], grids["block2/conv1@0:weight"], grids["block2/conv2@0:weight"]) == (4, 3, 7)
    assert not [key for key in grids if key.startswith("head")]
    assert model.quantizer("block2/conv1@0:weight").scale.shape == (16, 3)  # 8 x 3 x 3 numbers a row in groups of 32
    assert "block2/conv1@0:bias" not in grids
    read_by_block1 = next(key for key in grids if key.startswith("stem/0@0:output"))
    assert grids[read_by_block1] == 4


def test_sums_stay_at_8_bits() -> None:
    model = quantized(Scheme(BitWidths(4, 4)))
    assert model.quantizer("block1/conv2@0:output").grid.bits == 8


def test_weights_alone_need_no_data_and_no_activation_quantizers() -> None:
    model = make_small_resnet()
    only = prepare(model, torch.randn(2, 1, 8, 8), Quantize(), reduced=True, scheme=Scheme(BitWidths(8, 32)))
    set_weight_scales_(only)
    assert all(key.endswith(":weight") for key in only.quantizers)
    assert 0 < relative(model, only, torch.randn(8, 1, 8, 8)) < 0.02


def test_embeddings_and_recurrent_layers_are_stored_on_grids() -> None:
    model, tokens = Recurrent().eval(), torch.randint(0, 20, (4, 7))
    stored = prepare(model, (tokens,), Quantize(), reduced=False, scheme=Scheme(BitWidths(8, 32), embeddings=True))
    set_weight_scales_(stored)
    names = {key.rpartition(":")[0] for key in stored.quantizers}
    assert {"table@0", "head@0", "lstm@0:weight_ih_l0", "lstm@0:weight_hh_l1_reverse", "gru@0:weight_ih_l0"} <= names
    assert 0 < relative(model, stored, tokens) < 0.05
    without = prepare(model, (tokens,), Quantize(), reduced=False, scheme=Scheme(BitWidths(8, 32)))
    assert set(stored.quantizers) - set(without.quantizers) == {"table@0:weight"}


def test_a_head_tied_to_an_embedding_reads_the_stored_table(storyteller: nn.Module, stories: list[Tensor]) -> None:
    stored = prepare(storyteller, (stories[0],), Quantize(), reduced=False, scheme=Scheme(BitWidths(4, 32, 32), embeddings=True))
    table = next(node for node in stored.graph.nodes if node.target == "tok.weight")
    assert [str(user.target) for user in table.users] == ["quantizers.tok@0:weight"]


def test_a_copy_and_a_loaded_state_keep_the_scheme() -> None:
    scheme = Scheme(BitWidths(4, 8, 32))
    model = quantized(scheme)
    x = data()[0][0]
    assert copy.deepcopy(model).scheme == scheme
    fresh = prepare(SmallResNet(), model.example_inputs, model.config, reduced=True, scheme=Scheme.from_dict(scheme.to_dict()))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_a_published_resnet_keeps_most_of_its_output_in_4_bits(
    published: Task, published_w4: QuantizedModel, held_out: Tensor, shared_data: ModuleType
) -> None:
    with torch.no_grad():
        same = (published_w4(held_out).argmax(1) == published.model(held_out).argmax(1)).float().mean()
    assert same > 0.9
    assert relative(published.model, published_w4, held_out) < 0.4
