"""Attention and normalizations: what can be pruned of each way of writing them, and that it equals the masked original."""

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.errors import SurgeryError
from paredown.graph.couple import same_fraction
from paredown.graph.equality import check_cut, masked
from paredown.graph.groups import Groups, Keep, dependency_groups
from paredown.graph.manifest import Manifest, manifest_of
from paredown.graph.surgery import cut
from paredown.graph.trace import trace
from paredown.measure.cost import count_macs
from paredown.task.batches import call, tensors
from tests.graph import attention_nets as nets

CASES: dict[str, tuple[Callable[[], nets.Case], dict[str, int]]] = {
    # heads and their width are groups of their own; query, key and value of one layer share them
    "fused": (nets.fused, {"embed": 24, "qkv:0": 3, "qkv:1": 8, "fc1": 48}),
    "by_hand": (nets.by_hand, {"embed": 24, "qkv:0": 3, "qkv:1": 8, "fc1": 48}),
    "query_norm": (nets.query_norm, {"embed": 24, "qkv:0": 8, "qkv:1": 3, "fc1": 48}),
    "width_of_heads": (nets.width_of_heads, {"embed": 24, "qkv": 8, "fc1": 48}),
    "einsum": (nets.einsum, {"embed": 24, "q:0": 3, "q:1": 8, "v": 8, "fc1": 48}),
    # two queries to each key: they go together
    "grouped_queries": (nets.grouped_queries, {"embed": 32, "q:0": 2, "q:1": 8, "v": 8, "fc1": 64}),
    "repeated_keys": (nets.repeated_keys, {"embed": 32, "q:0": 2, "q:1": 8, "v": 8, "fc1": 64}),
    "handwritten_norm": (nets.handwritten_norm, {"embed": 24, "qkv:0": 3, "qkv:1": 8, "fc1": 48}),
    "encoder": (nets.encoder, {"embed": 16, "self_attn": 4, "linear1": 32}),
    "group_norm": (nets.group_norm, {"stem:0": 4, "stem:1": 4}),
    "one_group": (nets.one_group, {"stem": 16}),
    "instance_norm": (nets.instance_norm, {"stem": 16}),
    "channel_norm": (nets.channel_norm, {"stem": 16}),
}


def choice(groups: Groups, part: float, seed: int = 0) -> list[Keep]:
    """Of each group a random part is lost, the same fraction of those that are coupled."""
    random = np.random.default_rng(seed)
    lost = [min(max(1, int(g.size * part)), g.size - 1) for g in groups.groups]
    keep = [random.permutation(g.size) >= n for g, n in zip(groups.groups, lost, strict=True)]
    for together in groups.coupled:
        for g, kept in same_fraction(groups, together, part, random).items():
            keep[g] = kept
    return keep


def short_sizes(groups: Groups) -> dict[str, int]:
    """Sizes by the last part of the name: blocks are alike."""
    return {group.name.rpartition(".")[2]: group.size for group in groups.groups}


def prune_and_check(model: nn.Module, x: Any, groups: Groups, part: float) -> nn.Module:
    manifest = groups.manifest(choice(groups, part))
    pruned = cut(model, manifest)
    assert check_cut(model, pruned, manifest, groups.consumers, x, seed=3) <= 1e-9
    return pruned


def train_a_step(model: nn.Module, x: Any) -> None:
    out = next(t for t in tensors(call(copy.deepcopy(model).train(), x)) if t.is_floating_point())
    out.square().mean().backward()


@pytest.mark.parametrize("name", CASES)
def test_groups_are_as_expected_and_a_cut_net_equals_the_masked_net(name: str) -> None:
    torch.manual_seed(0)
    build, expected = CASES[name]
    model, x = build()
    groups = dependency_groups(model, x)
    assert short_sizes(groups) == expected
    assert groups.macs(groups.all_kept()) == count_macs(model, x)
    for part in (0.3, 0.7):
        pruned = prune_and_check(model, x, groups, part)
        assert groups.macs(choice(groups, part)) == count_macs(pruned, x) < count_macs(model, x)
    train_a_step(pruned, x)
    trace(pruned, x)


def test_a_width_that_the_class_computes_from_another_loses_the_same_fraction() -> None:
    model, x = nets.width_of_heads()
    groups = dependency_groups(model, x)
    (together,) = groups.coupled
    assert sorted(groups.groups[g].size for g in together) == [8, 8, 24]
    pruned = prune_and_check(model, x, groups, 0.5)
    shapes = {name: tuple(p.shape) for name, p in pruned.named_parameters()}
    assert shapes["embed.weight"] == (12, 5) and shapes["blocks.0.attention.qkv.weight"] == (36, 12)


def test_the_attention_scale_stays_what_the_original_had() -> None:
    torch.manual_seed(0)
    model, x = nets.fused()
    groups = dependency_groups(model, x)
    (width,) = [g for g, group in enumerate(groups.groups) if group.name == "blocks.0.attention.qkv:1"]
    keep = groups.all_kept()
    keep[width] = np.arange(8) < 2
    manifest = groups.manifest(keep)
    factors = np.array(manifest.scaled["blocks.0.attention.qkv.weight"][0])
    assert np.allclose(factors[:6], 0.5) and np.allclose(factors[6:], 1.0)  # sqrt(2 / 8), of the query alone
    pruned = cut(model, manifest)
    with torch.no_grad():
        assert torch.allclose(pruned(x), masked(model, manifest, groups.consumers)(x), atol=1e-5)
        pruned.get_parameter("blocks.0.attention.qkv.weight").data[:6] *= 2
        assert not torch.allclose(pruned(x), masked(model, manifest, groups.consumers)(x), atol=1e-5)


def test_a_scale_that_is_an_attribute_changes_no_weight() -> None:
    model, x = nets.einsum()
    groups = dependency_groups(model, x)
    assert not groups.scales and not groups.manifest(choice(groups, 0.5)).scaled


def test_the_masked_model_normalizes_over_the_kept_indices_only() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    groups = dependency_groups(model, x)
    manifest = groups.manifest([np.arange(8) < 5])
    expected = model[2](F.pad(F.layer_norm(model[0](x)[:, :5], (5,)), (0, 3)))
    assert torch.allclose(masked(model, manifest, groups.consumers)(x), expected, atol=1e-6)
    plain = masked(model, manifest, [c for c in groups.consumers if isinstance(c, tuple)])
    assert not torch.allclose(plain(x), expected, atol=1e-3)


def test_a_missed_statistic_is_found() -> None:
    model, x = nets.handwritten_norm()
    groups = dependency_groups(model, x)
    manifest = groups.manifest(choice(groups, 0.3))
    assert groups.statistics
    without = dataclasses.replace(groups, statistics=())
    with pytest.raises(SurgeryError, match="must equal the masked original"):
        check_cut(model, cut(model, manifest), manifest, without.consumers, x)


def test_a_mean_that_normalizes_nothing_freezes_what_it_runs_over() -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).mean(-1, keepdim=True))

    groups = dependency_groups(Averaged(), torch.randn(3, 4))
    assert not groups.groups and "aten.mean" in {b.operator for b in groups.barriers}


def test_rotary_frequencies_of_the_width_leave_whole_heads() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.head_dim = 4, 6
            self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (m(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for m in (self.q, self.k, self.v))
            d = self.head_dim
            angle = torch.outer(torch.arange(x.shape[1]), 10.0 ** -(torch.arange(0, d, 2) / d)).to(x)

            def turn(z: Tensor) -> Tensor:
                a, b = z.chunk(2, -1)
                return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

            return self.o(F.scaled_dot_product_attention(turn(q), turn(k), v).transpose(1, 2).flatten(2))

    model, x = nets.Classifier([nets.Block(Rotary(), 24)], 24).eval(), nets.TOKENS
    groups = dependency_groups(model, x)
    assert short_sizes(groups) == {"embed": 24, "q": 4, "fc1": 48}
    prune_and_check(model, x, groups, 0.5)


def test_heads_that_all_layers_count_by_one_attribute_go_together() -> None:
    class Shared(nn.Module):
        """As many heads as a head is wide, so that sizes alone don't tell them apart."""

        def __init__(self) -> None:
            super().__init__()
            self.heads, self.head_dim = 4, 4
            self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(16, 16) for _ in "qkvo") for _ in range(2))
            self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            turn = torch.arange(self.head_dim).to(x).cos()
            for layer in self.layers:
                a, b, c, last = layer.children()
                q, k, v = (m(x).view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2) for m in (a, b, c))
                y = F.scaled_dot_product_attention(q * turn, k * turn, v)
                x = x + last(y.transpose(1, 2).flatten(2))
            return self.head(x)

    torch.manual_seed(0)
    model = Shared().eval()
    groups = dependency_groups(model, nets.TOKENS)
    assert [{groups.groups[g].name for g in together} for together in groups.coupled] == [{"layers.0.0", "layers.1.0"}]
    assert prune_and_check(model, nets.TOKENS, groups, 0.5).get_parameter("layers.1.0.weight").shape == (8, 8)


def test_positions_that_this_input_does_not_reach_are_kept() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Parameter(torch.randn(16, 8)), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x) + self.table[:6]))

    groups = dependency_groups(Positions(), nets.TOKENS)
    assert short_sizes(groups) == {"a": 8}
    assert ("table", 0) not in groups.extents


def test_a_manifest_with_factors_and_attributes_composes_and_survives_json() -> None:
    torch.manual_seed(0)
    model, x = nets.fused()
    first = dependency_groups(model, x)
    once = cut(model, first.manifest(choice(first, 0.3)))
    second = dependency_groups(once, x)
    twice = prune_and_check(once, x, second, 0.3)
    manifest = manifest_of(twice)
    assert manifest is not None and manifest.attributes["blocks.0.attention"]["head_dim"] < 8
    directly = cut(model, Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))))
    for name, value in twice.state_dict().items():
        assert torch.allclose(value, directly.state_dict()[name], rtol=1e-6)
    with torch.no_grad():
        assert torch.allclose(twice(x), directly(x), atol=1e-5)


@pytest.mark.parametrize("attribute", ["forward", "nothing"])
def test_a_manifest_sets_only_whole_numbers_that_the_class_has(attribute: str) -> None:
    model, _ = nets.fused()
    with pytest.raises(SurgeryError, match=r"whole numbers.*fresh, uncut model"):
        cut(model, Manifest(attributes={"": {attribute: 3}}))


REAL = ("vit", "swin", "maxvit", "convnext", "timm vit", "bert", "gpt2", "llama")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_classes_that_others_wrote_lose_half_of_their_macs(name: str) -> None:
    model, x = nets.real(name)
    groups = dependency_groups(model, x)
    assert groups.macs(groups.all_kept()) == count_macs(model, x)
    for part in (0.3, 0.7):
        pruned = prune_and_check(model, x, groups, part)
    assert count_macs(pruned, x) <= 0.5 * count_macs(model, x)
    train_a_step(pruned, x)
    trace(pruned, x)
