"""Gates on bare models: folding, sharing, hooks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paredown.core.steps import Gate
from paredown.graph.groups import Groups, dependency_groups
from paredown.pruning.gates import Gates, Place, fold_, places
from paredown.task.batches import call
from tests.conftest import make_small_resnet
from tests.graph import nets

BOTH: tuple[Gate, ...] = ("static", "squeeze_excite")


def output(model: nn.Module, batch: Any) -> Tensor:
    result: Tensor = call(model, batch[0])
    return result


def opened(model: nn.Module, groups: Groups, x: Tensor, kind: Gate = "static") -> Gates:
    """Gates at random values."""
    torch.manual_seed(0)
    gates = Gates(model, groups, kind, x).eval()
    with torch.no_grad():
        for parameter in [gates.scores, *gates.excite.parameters()]:
            parameter.copy_(torch.randn(parameter.shape))
    return gates


def small() -> tuple[nn.Module, Tensor]:
    return make_small_resnet().double(), torch.randn(6, 1, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("make", [small, *(nets.PRUNABLE[n] for n in ("flattened", "dense", "gated", "grouped", "tied_head"))])
def test_the_folded_model_is_the_gated_one(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    model, x = make()
    x = x.double() if x.is_floating_point() else x
    model = model.double()
    groups = dependency_groups(model, x)
    assert groups.groups
    gated = opened(model, groups, x)
    with gated.hooked(), torch.no_grad():
        before = gated(output, (x, None))
        gates = gated.gates()
    whole = model(x)
    fold_(model, places(groups), gates)
    after = model(x)
    assert torch.allclose(after, before, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(after, whole, rtol=1e-2)


def test_a_gate_at_zero_is_the_channel_removed() -> None:
    """Everything downstream is as without it, although the channel is made in several places of the residual stream."""
    model, x = small()
    groups = dependency_groups(model, x)
    stream = max(range(len(groups.groups)), key=lambda g: len(groups.groups[g].slices))
    gated = opened(model, groups, x)
    with torch.no_grad():
        gated.by_group(gated.scores)[stream][0] = -1e9
    with gated.hooked(), torch.no_grad():
        before = gated(output, (x, None))
        parameters = dict(model.named_parameters())
        for part in groups.groups[stream].slices:
            if not part.consumer and part.tensor in parameters:
                parameters[part.tensor].index_fill_(part.dimension, torch.from_numpy(part.positions[part.atoms == 0]), 7.0)
        after = gated(output, (x, None))
    assert torch.allclose(before, after, rtol=1e-9)


def test_one_gate_serves_all_consumers_of_a_group() -> None:
    """What each of them reads is the same channels times the same gates, sample by sample."""
    model, x = small()
    groups = dependency_groups(model, x)
    gated = opened(model, groups, x, "squeeze_excite").double()
    stream = next(g for g, group in enumerate(groups.groups) if group.name == "stem.0")
    readers = ("block1.conv1", "block2.conv1", "block2.shortcut.0")
    before, after = dict[str, Tensor](), dict[str, Tensor]()

    def note(into: dict[str, Tensor], name: str) -> None:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args: into.update({name: args[0].sum((2, 3))}))

    for name in readers:
        note(before, name)
    with gated.hooked(), torch.no_grad():
        for name in readers:
            note(after, name)
        gated(output, (x, None))
    for name in readers:
        assert torch.allclose(after[name], before[name] * gated._seen[stream], rtol=1e-9)
    assert float(gated._seen[stream].std(0).max()) > 1e-3


@pytest.mark.parametrize("kind", BOTH)
def test_no_hook_is_left_behind_after_an_exception(kind: Gate) -> None:
    model, x = small()
    gated = opened(model, dependency_groups(model, x), x, kind)

    def fails(_model: nn.Module, _batch: Any) -> Tensor:
        raise ZeroDivisionError

    weights = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(ZeroDivisionError), gated.hooked():
        gated(fails, (x, None))
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert {name: id(p) for name, p in model.named_parameters()} == weights


def test_squeeze_excite_gates_depend_on_the_sample_and_average_to_what_is_read() -> None:
    model, x = small()
    groups = dependency_groups(model, x)
    gated = opened(model, groups, x, "squeeze_excite").double()
    assert not gated.static
    with gated.hooked(), torch.no_grad():
        gated(output, (x, None))
        read = gated.gates()
    by_sample = gated._seen[0]  # (batch, size)
    assert float(by_sample.std(0).max()) > 1e-3
    assert torch.allclose(read[0], by_sample.mean(0) / by_sample.mean(0).max())
    assert all(float(gate.max()) == pytest.approx(1.0) and float(gate.min()) >= 0 for gate in read)


@pytest.mark.parametrize("name", ["tied_head", "grouped"])
def test_groups_that_are_not_read_by_plain_layers_get_static_gates(name: str) -> None:
    model, x = nets.PRUNABLE[name]()
    groups = dependency_groups(model, x)
    gated = opened(model, groups, x, "squeeze_excite")
    assert gated.static
    with gated.hooked(), torch.no_grad():
        assert gated(output, (x, None)).shape == model(x).shape


def test_an_index_with_several_owners_takes_the_product_of_their_gates() -> None:
    both, first, second = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1])
    place = Place("w", 1, 4, ((0, both, both), (0, second, first), (1, first, second)))
    factor = place.factor([torch.tensor([0.5, 0.25]), torch.tensor([0.1])])
    assert factor.tolist() == pytest.approx([0.125, 0.025, 1.0, 1.0])


def test_gates_reach_the_weights_of_recurrent_layers() -> None:
    """An LSTM computes with a list of its own, which swapping parameters doesn't reach by itself."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 6), nn.LSTM(6, 4, batch_first=True)), torch.randn(3, 7, 5)
    gated = Gates(model, Groups((), (), {}, ()), "static", x)
    gated.static = [Place("1.weight_ih_l0", 1, 6, ((0, torch.arange(6), torch.arange(6)),))]
    gated.sizes, gated.scores = [6], torch.linspace(-3, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        before = gated(lambda m, b: m(b[0])[0], (x, None))
        fold_(model, gated.static, gated.gates())
        after = model(x)[0]
    assert torch.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gates_by_sample_work_in_whatever_the_model_computes_in(dtype: torch.dtype) -> None:
    model, x = make_small_resnet().to(dtype), torch.randn(6, 1, 8, 8, dtype=dtype)
    gated = Gates(model, dependency_groups(model, x), "squeeze_excite", x)
    with gated.hooked():
        found = gated(output, (x, None))
    assert found.dtype is dtype and bool(found.isfinite().all())
