"""A cut model whose weights are slices of another's: what it computes, where its gradients go, what it leaves alone."""

import torch
from torch import nn

from paredown.graph.groups import dependency_groups
from paredown.graph.manifest import Manifest
from paredown.graph.sharing import shared_cut
from paredown.graph.surgery import cut
from tests.conftest import make_small_resnet


def half(model: nn.Module, x: torch.Tensor) -> Manifest:
    groups = dependency_groups(model, x)
    keep = groups.all_kept()
    for each in keep:
        each[len(each) // 2 :] = False
    return groups.manifest(keep)


def test_it_computes_what_the_cut_computes_and_trains_what_it_was_cut_from() -> None:
    model, x = make_small_resnet().train(), torch.randn(4, 1, 8, 8)
    manifest = half(model, x)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    shared = shared_cut(model, manifest)
    assert torch.allclose(shared(x), cut(model, manifest)(x), atol=1e-6)
    shared(x).square().sum().backward()
    weight = model.block1.conv1.weight
    kept = list(manifest.kept["block1.conv1.weight"][0])
    assert weight.grad is not None and bool(weight.grad[kept].abs().sum() > 0)
    assert weight.grad.abs().sum() == weight.grad[kept].abs().sum()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_recurrent_layers_run_on_the_slices() -> None:
    model = nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    shared = shared_cut(model, Manifest())
    with torch.no_grad():
        model.weight_ih_l0 += 1  # values, not views of a copy
    shared = shared_cut(model, Manifest())
    assert torch.equal(shared(x)[0], model(x)[0])
    shared(x)[0].sum().backward()
    assert model.weight_hh_l0.grad is not None and bool(model.weight_hh_l0.grad.abs().sum() > 0)
