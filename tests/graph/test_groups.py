"""Dependency groups: what is tied, what is frozen and why, and that cut models equal masked ones."""

import re
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.core.errors import SurgeryError
from paredown.graph import rules
from paredown.graph.couple import units
from paredown.graph.equality import check_cut
from paredown.graph.groups import Groups, Keep, dependency_groups
from paredown.graph.probe import culprits
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs
from tests.graph import nets


def random_choice(groups: Groups, seed: int) -> list[Keep]:
    """Of each group a random part; the same fraction of those that are coupled."""
    random = np.random.default_rng(seed)
    counts = [int(random.integers(1, group.size + 1)) for group in groups.groups]
    for together in groups.coupled:
        parts = units(groups, together)
        kept = int(random.integers(1, parts + 1))
        for g in together:
            counts[g] = groups.groups[g].size // parts * kept
    return [random.permutation(group.size) < count for group, count in zip(groups.groups, counts, strict=True)]


def half(groups: Groups) -> list[Keep]:
    return [np.arange(group.size) >= group.size // 2 for group in groups.groups]


def sizes(groups: Groups) -> dict[str, int]:
    return {group.name: group.size for group in groups.groups}


def reasons(groups: Groups) -> str:
    return " | ".join(f"{b.operator} {b.where} {b.reason}" for b in groups.barriers)


@pytest.mark.parametrize("name", nets.PRUNABLE)
def test_a_cut_net_equals_the_masked_net_and_costs_what_was_counted(name: str) -> None:
    model, x = nets.PRUNABLE[name]()
    groups = dependency_groups(model, (x,))
    assert groups.groups
    assert groups.macs(groups.all_kept()) == count_macs(model, x)
    for keep in (half(groups), random_choice(groups, 1)):
        manifest = groups.manifest(keep)
        pruned = cut(model, manifest)
        assert check_cut(model, pruned, manifest, groups.consumers, x, seed=3) <= 1e-9
        assert groups.macs(keep) == count_macs(pruned, x)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("depthwise", {"a": 8, "b": 2, "c": 12}),  # b: the two outputs that each channel has
        ("grouped", {"a:0": 4, "a:1": 4, "b": 6}),  # 4 groups, 4 inputs in each, 6 outputs in each
        ("dense", {"a": 8, "b": 6, "c": 5}),
        ("gated", {"a": 8}),
        ("zeroed", {"a": 8}),
        ("flattened", {"a": 8, "b": 6}),
        ("squeezed", {"a": 16, "b": 4}),
        ("in_place", {"a": 8}),
        ("heads", {"q": 4}),
        ("tied_head", {"m2": 8, "m1": 16}),
    ],
)
def test_groups_are_as_fine_as_the_net_allows(name: str, expected: dict[str, int]) -> None:
    model, x = nets.PRUNABLE[name]()
    assert sizes(dependency_groups(model, (x,))) == expected


@pytest.mark.parametrize("layer", ["softmax", "fft", "sum"])
def test_an_operator_that_needs_every_channel_is_a_barrier_and_the_rest_is_pruned(layer: str) -> None:
    model, x = nets.one_of(layer)
    groups = dependency_groups(model, (x,))
    assert sizes(groups) == {"a": 8}
    assert {"softmax": "softmax", "fft": "fft_rfft", "sum": "sum"}[layer] in reasons(groups)
    assert "nets.py:" in reasons(groups)


def test_lines_of_torchvision_are_the_users_own_and_not_torchs() -> None:
    """Its path begins like torch's."""
    groups = dependency_groups(torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64))
    assert [b.where.partition(":")[0] for b in groups.barriers] == ["resnet.py"]


def test_a_barrier_in_a_model_of_torchs_own_modules_names_the_module() -> None:
    groups = dependency_groups(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10)), torch.randn(2, 8))
    assert [(b.operator, b.where) for b in groups.barriers] == [("output", "2")]


def test_the_output_keeps_its_shape_and_says_so(small_resnet: nn.Module) -> None:
    groups = dependency_groups(small_resnet, torch.randn(2, 1, 8, 8))
    assert ("head.weight", 0) not in groups.extents
    assert [b.reason for b in groups.barriers] == ["the model's output keeps its shape"]
    assert re.fullmatch(r"conftest\.py:\d+, in forward", groups.barriers[0].where)


def test_the_residual_net_has_one_group_per_stream_and_per_block(small_resnet: nn.Module) -> None:
    groups = dependency_groups(small_resnet, torch.randn(2, 1, 8, 8))
    assert sizes(groups) == {"stem.0": 8, "block1.conv1": 8, "block2.conv1": 16, "block2.conv2": 16}
    assert ("head.weight", 1) in groups.consumers and ("head.weight", 0) not in groups.consumers


def test_a_protected_module_keeps_all_dimensions(small_resnet: nn.Module) -> None:
    groups = dependency_groups(small_resnet, torch.randn(2, 1, 8, 8), protect=("head", "block1.conv1"))
    assert sizes(groups) == {"block2.conv1": 16}
    assert "protected by the user" in reasons(groups)


def test_widths_that_are_literals_in_forward_are_barriers_not_errors() -> None:
    model, x = nets.split_by_number()
    groups = dependency_groups(model, (x,))
    assert not groups.groups
    assert "literal in forward" in reasons(groups)


def test_the_half_behind_a_literal_slice_is_pruned_and_the_half_before_it_is_not() -> None:
    model, x = nets.sliced()
    groups = dependency_groups(model, (x,))
    extent = groups.extents["a.weight", 0]
    assert np.flatnonzero(~extent.living([np.zeros(8, dtype=bool)])).tolist() == list(range(8, 16))


def test_halves_of_a_chunk_must_lose_equally_many() -> None:
    model, x = nets.chunked()
    groups = dependency_groups(model, (x,))
    assert [{groups.groups[g].size for g in together} for together in groups.coupled] == [{8}]
    assert len(groups.groups) == 3


def test_tied_weights_are_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))

    model = Tied()
    groups = dependency_groups(model, torch.randn(2, 4))
    assert sizes(groups) == {"a": 6}
    manifest = groups.manifest(half(groups))
    pruned = cut(model, manifest)
    assert isinstance(pruned, Tied) and pruned.c.weight is pruned.b.weight and pruned.b.weight.shape == (3, 3)


def test_inputs_by_name_and_integer_inputs_are_taken() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.dense, self.head = nn.Embedding(10, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, ids: Tensor, features: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(torch.relu(self.embed(ids) + self.dense(features)))}

    inputs = {"ids": torch.tensor([1, 9]), "features": torch.randn(2, 3)}
    assert sizes(dependency_groups(Two(), inputs)) == {"embed": 8}


def test_the_model_is_left_as_it_was(small_resnet: nn.Module) -> None:
    small_resnet.train()
    before = {name: value.clone() for name, value in small_resnet.state_dict().items()}
    dependency_groups(small_resnet, torch.randn(2, 1, 8, 8))
    assert small_resnet.training
    assert all(torch.equal(value, before[name]) for name, value in small_resnet.state_dict().items())


def test_a_wrong_rule_leads_to_a_barrier_never_to_a_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_order(op: rules.Operation) -> tuple[rules.Dims, ...]:
        (dims,) = right(op)
        return (tuple(None if labels is None else labels[::-1] for labels in dims),)

    right = rules.RULES["flatten"]
    monkeypatch.setitem(rules.RULES, "flatten", reversed_order)
    model, x = nets.flattened()
    groups = dependency_groups(model, (x,))
    assert sizes(groups) == {"a": 8}
    assert "disagrees with the masked original" in reasons(groups)


def test_a_rule_that_forgets_a_parameter_leads_to_a_barrier(monkeypatch: pytest.MonkeyPatch, small_resnet: nn.Module) -> None:
    monkeypatch.setitem(rules.RULES, "batch_norm", lambda op: (op.dims(op["input"]),))
    groups = dependency_groups(small_resnet, torch.randn(2, 1, 8, 8))
    assert not any(s.consumer for group in groups.groups for s in group.slices)


def test_cifar_resnet_with_the_padded_shortcut(shared_data: ModuleType) -> None:
    model, x = shared_data.cifar_resnet(20), torch.randn(2, 3, 32, 32)
    groups = dependency_groups(model, x)
    inner = {f"layer{s}.{b}.conv1": 2 ** (3 + s) for s in (1, 2, 3) for b in range(3)}
    assert sizes(groups) == {"conv1": 16, **inner}
    found = sorted(b.where for b in groups.barriers if b.operator == "forward")
    for where, layer in zip(found, ("layer2.0.conv2", "layer3.0.conv2"), strict=True):  # with the line that calls it
        assert re.fullmatch(re.escape(layer) + r" \(load\.py:\d+, in forward\)", where)
    keep = random_choice(groups, 0)
    manifest = groups.manifest(keep)
    pruned = cut(model, manifest)
    assert check_cut(model, pruned, manifest, groups.consumers, x) <= 1e-9
    assert groups.macs(keep) == count_macs(pruned, x)


class Random(nn.Module):
    """A random stack of residual, concatenating, splitting, grouped, depthwise, padding and shuffling steps."""

    def __init__(self, steps: list[str], width: int) -> None:
        super().__init__()
        self.steps, self.layers = steps, nn.ModuleList()
        self.stem = nn.Conv2d(2, width, 1)
        for step in steps:
            self.layers.append(self._layer(step, width))
            width = {"cat": width + 4, "split": width // 2, "pad": width + 4}.get(step, width)
        self.head = nn.Linear(width * 9, 3)

    def _layer(self, step: str, width: int) -> nn.Module:
        match step:
            case "residual":
                return nn.Sequential(nn.Conv2d(width, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, width, 1))
            case "cat":
                return nn.Conv2d(width, 4, 1)
            case "group":
                return nn.Conv2d(width, width, 3, padding=1, groups=2)
            case "depthwise":
                return nn.Conv2d(width, width, 3, padding=1, groups=width)
            case "conv":
                return nn.Conv2d(width, width, 1)
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step, layer in zip(self.steps, self.layers, strict=True):
            match step:
                case "residual":
                    x = x + layer(x)
                case "cat":
                    x = torch.cat([x, F.relu(layer(x))], 1)
                case "split":
                    a, b = x.chunk(2, 1)
                    x = a * torch.sigmoid(b)
                case "pad":
                    x = F.pad(x, (0, 0, 0, 0, 0, 4))
                case "shuffle":
                    n, c, h, w = x.shape
                    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2)
                case _:
                    x = F.relu(layer(x))
        return self.head(x.flatten(1))


STEPS = ("residual", "cat", "split", "group", "depthwise", "conv", "pad", "shuffle")


def checked_error(model: nn.Module, groups: Groups, x: Tensor, seed: int) -> float:
    """The error of a random cut; groups that the class can't lose in just this way are left whole, as prune does."""
    while True:
        keep = random_choice(groups, seed)
        try:
            manifest = groups.manifest(keep)
            return check_cut(model, cut(model, manifest), manifest, groups.consumers, x, seed=seed + 1)
        except SurgeryError:
            bad = culprits(model, groups, keep, x, seed + 1)
            assert bad
            groups = groups.without(bad)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=5), st.integers(0, 1000))
def test_any_cut_of_any_random_net_equals_its_mask(steps: list[str], seed: int) -> None:
    width = 16 if steps.count("split") > 1 else 8
    steps = steps if steps.count("split") <= 2 else [s for s in steps if s != "split"]
    torch.manual_seed(seed)
    model, x = Random(steps, width).eval(), torch.randn(2, 2, 3, 3)
    assert checked_error(model, dependency_groups(model, x), x, seed) <= 1e-9


def test_plain_random_nets_have_no_barrier_but_their_output() -> None:
    model, x = Random(["residual", "cat", "group", "depthwise", "conv", "split", "residual"], 8).eval(), torch.randn(2, 2, 3, 3)
    assert [b.operator for b in dependency_groups(model, x).barriers] == ["output"]


def test_without_a_group_its_partners_go_too_and_the_rest_is_renumbered() -> None:
    model, x = nets.chunked()
    groups = dependency_groups(model, (x,))
    rest = groups.without([groups.coupled[0][1]])
    assert sizes(rest) == {"d": 8} and not rest.coupled
    keep = [np.arange(8) < 3]
    assert set(rest.manifest(keep).kept) == {"d.weight", "d.bias", "e.weight"}
    assert rest.macs(keep) == count_macs(cut(model, rest.manifest(keep)), x)


def test_a_cut_that_would_empty_a_dimension_is_refused(small_resnet: nn.Module) -> None:
    groups = dependency_groups(small_resnet, torch.randn(2, 1, 8, 8))
    with pytest.raises(SurgeryError, match=r"something of every dimension.*raise floor"):
        groups.manifest([np.zeros(group.size, dtype=bool) for group in groups.groups])


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.last(hidden + torch.randn_like(hidden))


def test_a_model_that_is_random_is_told_so() -> None:
    found = dependency_groups(Noisy(), torch.randn(2, 6))
    assert not found.groups and any("random in evaluation mode" in barrier.reason for barrier in found.barriers)


def test_what_evaluation_does_not_read_is_a_barrier() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3))
    model[0].spare = nn.Linear(3, 3)
    found = dependency_groups(model, torch.randn(2, 6))
    assert [b.where for b in found.barriers if b.operator == "unread"] == ["0.spare"] and len(found.groups) == 1
