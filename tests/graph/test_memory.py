"""What an analysis allocates: far less than the weights of a model whose large ones are in linear layers and convolutions."""

import multiprocessing
import pathlib
import re
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from paredown.graph.groups import dependency_groups

MOST = 0.4  # of the bytes of all weights; 0.10 to 0.25 were measured


class Residual(nn.Module):
    """Layers of equal size around a residual stream. Inputs (batch, 16); 8 classes."""

    def __init__(self, width: int, layers: int, *, convolutions: bool) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.first, self.last = nn.Linear(16, width), nn.Linear(width, 8)
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) if convolutions else nn.Linear(width, width) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x[:, :, None, None].expand(-1, -1, 4, 4) if self.convolutions else x
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.last(x.mean((2, 3)) if self.convolutions else x)


def grown(width: int, layers: int, convolutions: bool) -> tuple[float, float]:
    """By how much the peak memory of this process grows while a model is analysed, and then by a copy of its weights.

    As fractions of the bytes of the weights.
    """
    x = torch.randn(2, 16)
    dependency_groups(Residual(32, 2, convolutions=convolutions).eval(), x)  # what is imported and set up once
    with torch.device("meta"):
        model = Residual(width, layers, convolutions=convolutions).eval()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)  # so that its pages are there
    before, weights = _resident("VmRSS"), sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights > 350e6
    groups = dependency_groups(model, x)
    analysed = _resident("VmHWM")
    assert [group.size for group in groups.groups] == [width]
    second = [parameter.detach().clone() for parameter in model.parameters()]
    assert len(second) == len([*model.parameters()])
    return (analysed - before) / weights, (_resident("VmHWM") - before) / weights


def _resident(entry: str) -> int:
    """VmRSS: bytes in memory now. VmHWM: the most there have been since the process began its program."""
    found = re.search(rf"{entry}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("width", "layers", "convolutions"),
    [pytest.param(2048, 24, False, id="linear"), pytest.param(1024, 10, True, id="convolutions", marks=pytest.mark.slow)],
)
def test_an_analysis_needs_no_second_copy_of_the_weights(width: int, layers: int, convolutions: bool) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        analysis, copied = process.submit(grown, width, layers, convolutions).result()
    assert analysis <= MOST
    assert copied >= 0.9  # a copy would have been seen
