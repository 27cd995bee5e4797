"""Recurrent layers: the hidden width is cut out of every gate alike, and layers of one module keep one width."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paredown.graph.groups import dependency_groups
from paredown.graph.surgery import cut
from paredown.graph.trace import trace
from paredown.measure.cost import count_macs
from tests.graph import attention_nets as nets
from tests.graph.test_attention import choice, prune_and_check, short_sizes, train_a_step

CASES: dict[str, tuple[nets.Case, dict[str, int], int]] = {
    "lstm": (nets.recurrent("LSTM"), {"embed": 12, "rnn": 16}, 0),
    "gru without bias": (nets.recurrent("GRU", bias=False), {"embed": 12, "rnn": 16}, 0),
    "no gates": (nets.recurrent("RNN"), {"embed": 12, "rnn": 16}, 0),
    "two layers": (nets.recurrent("LSTM", num_layers=2), {"embed": 12, "rnn:0": 16, "rnn:1": 16}, 1),
    "both directions": (nets.recurrent("GRU", bidirectional=True), {"embed": 12, "rnn:0": 16, "rnn:1": 16}, 1),
    "projected": (nets.recurrent("LSTM", proj_size=6), {"embed": 12, "rnn:0": 16, "rnn:1": 6}, 0),
    # the final state stacks the layers, so all of them lose the same units
    "final state": (nets.recurrent("LSTM", num_layers=2, state=True), {"embed": 12, "rnn": 16}, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cut_classifier_equals_the_masked_one_and_trains(name: str) -> None:
    (model, x), expected, coupled = CASES[name]
    groups = dependency_groups(model, x)
    assert short_sizes(groups) == expected and len(groups.coupled) == coupled
    assert [b.operator for b in groups.barriers] == ["output"]
    assert groups.macs(groups.all_kept()) == count_macs(model, x)
    for part in (0.3, 0.7):
        pruned = prune_and_check(model, x, groups, part)
        assert groups.macs(choice(groups, part)) == count_macs(pruned, x)
    assert count_macs(pruned, x) <= 0.5 * count_macs(model, x)
    train_a_step(pruned, x)
    trace(pruned, x)


def test_attributes_follow_and_every_gate_loses_the_same_units() -> None:
    model, x = nets.recurrent("LSTM")
    groups = dependency_groups(model, x)
    keep = [np.arange(g.size) % 4 > 0 for g in groups.groups]
    pruned = cut(model, groups.manifest(keep))
    rnn, before = pruned.get_submodule("rnn"), model.get_submodule("rnn")
    assert isinstance(rnn, nn.LSTM) and isinstance(before, nn.LSTM)
    assert (rnn.input_size, rnn.hidden_size) == (9, 12)
    gates = before.weight_hh_l0.reshape(4, 16, 16)[:, keep[1]][:, :, keep[1]]
    assert torch.equal(rnn.weight_hh_l0, gates.reshape(48, 12))


def test_an_initial_state_that_the_caller_gives_keeps_the_hidden_width() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.head(self.rnn(x, state.transpose(0, 1))[0][:, -1])

    groups = dependency_groups(Given(), (nets.TOKENS, torch.randn(3, 1, 8)))
    assert not groups.groups
    assert "the caller gives the layer's initial state" in {b.reason for b in groups.barriers}


def test_a_learned_initial_state_goes_with_the_hidden_width() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 2)
            self.state = nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x, self.state.expand(1, x.shape[0], -1).contiguous())[0][:, -1])

    model = Learned()
    groups = dependency_groups(model, nets.TOKENS)
    assert [group.size for group in groups.groups] == [8]
    assert prune_and_check(model, nets.TOKENS, groups, 0.5).get_parameter("state").shape == (1, 1, 4)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}], ids=["two layers", "both directions"])
def test_no_lstm_runs_whose_layers_differ_in_width(options: dict[str, Any]) -> None:
    """oneDNN's operator would read beyond the narrower one's weights."""
    ran: list[set[int]] = []

    class Watched(nn.LSTM):
        def forward(self, *args: Any) -> Any:
            result = super().forward(*args)
            ran.append({weight.shape[1] for name, weight in self.named_parameters() if name.startswith("weight_hh")})
            return result

    model, x = nets.recurrent("LSTM", **options)
    watched = Watched(12, 16, batch_first=True, **options)
    model.set_submodule("rnn", watched)
    groups = dependency_groups(model, x)
    assert short_sizes(groups) == {"embed": 12, "rnn:0": 16, "rnn:1": 16} and len(groups.coupled) == 1
    assert {16} in ran and len(ran) > 4 and all(len(widths) == 1 for widths in ran)
    assert torch.backends.mkldnn.enabled
