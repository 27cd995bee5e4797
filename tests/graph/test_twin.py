"""Twins: copies of a model with other weights, cut and masked for a while."""

import torch
from torch import Tensor, nn

from paredown.graph.twin import light_twin, masking, outputs, runs, zeroed
from paredown.task.batches import first_samples


class Large(nn.Module):
    """Two layers whose weights are made when they run, and one that is small."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide, self.small = nn.Conv2d(64, 512, 3), nn.Linear(512, 512), nn.Linear(512, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu().mean((2, 3))
        return self.small(self.wide(h).relu())


def test_masking_by_inputs_equals_masking_by_weights() -> None:
    model = Large().eval()
    lazy, plain = (light_twin(model, torch.randn(2, 64, 5, 5), 0, torch.float64, samples=2, lazy=lazy) for lazy in (True, False))
    removed = {"conv.weight": [1, 60], "wide.weight": [0, 7, 300], "small.weight": [5]}
    indices = {name: {1: torch.tensor(gone)} for name, gone in removed.items()}
    found = []
    for twin in (lazy, plain):
        with masking(twin, indices):
            found.append(outputs(twin.model, twin.batches[0], twin.dtype)[0])
    by_hand = light_twin(model, torch.randn(2, 64, 5, 5), 0, torch.float64, samples=2)
    for name, dimensions in indices.items():
        by_hand.tensors[name].data = zeroed(by_hand.weights[name], dimensions)
    expected = outputs(by_hand.model, lazy.batches[0], torch.float64)[0]
    assert all(torch.allclose(each, expected, rtol=1e-12, atol=1e-12) for each in found)
    whole = outputs(lazy.model, lazy.batches[0], torch.float64)[0]
    assert not torch.allclose(whole, expected, rtol=1e-3)


def test_a_light_twin_runs_and_leaves_the_model_alone() -> None:
    model = Large().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert runs(light_twin(model, torch.randn(2, 64, 40, 40), 0, torch.float32, samples=1, side=8, lazy=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_first_samples_leaves_what_has_no_batch() -> None:
    inputs = {"x": torch.ones(5, 3), "table": torch.ones(4), "count": torch.tensor(5)}
    few = first_samples(inputs, 2)
    assert isinstance(few, dict)
    assert [tuple(few[name].shape) for name in inputs] == [(2, 3), (4,), ()]
