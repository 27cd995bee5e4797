"""What an analysis allocates: far less than the weights of a model, whatever its layers, if no single weight is most of it."""

import multiprocessing
import pathlib
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from paredown.graph.groups import dependency_groups

MOST = 0.45  # of the bytes of all weights; 0.12 to 0.32 were measured


class Residual(nn.Module):
    """Layers of equal size around a residual stream. Inputs (batch, 16); 8 classes."""

    def __init__(self, width: int, layer: Callable[[int], nn.Module], layers: int, *, images: bool = False) -> None:
        super().__init__()
        self.images, self.first, self.last = images, nn.Linear(16, width), nn.Linear(width, 8)
        self.layers = nn.ModuleList(layer(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x[:, :, None, None].expand(-1, -1, 4, 4) if self.images else x
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.last(x.mean((2, 3)) if self.images else x)


class Bare(nn.Module):
    """Two matrices that belong to no layer of torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.empty(width, width)), nn.Parameter(torch.empty(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.one).relu() @ self.two


class Stories(nn.Module):
    """A language model of transformers, its table tied to its head. Inputs: tokens (batch, length)."""

    def __init__(self, name: str, width: int, layers: int) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        if name == "gpt2":
            config = transformers.GPT2Config(vocab_size=2000, n_embd=width, n_layer=layers, n_head=4)
        else:
            config = transformers.LlamaConfig(
                vocab_size=8000,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=8,
                num_key_value_heads=4,
                tie_word_embeddings=True,
            )
        self.model = transformers.AutoModelForCausalLM.from_config(config)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=x, use_cache=False).logits
        return logits


def built(kind: str, *, large: bool) -> tuple[nn.Module, Tensor, int]:
    """A model, its inputs, and how many groups it has."""
    match kind:
        case "linear":
            width, layers = (2048, 24) if large else (32, 2)
            return Residual(width, lambda w: nn.Linear(w, w), layers), torch.randn(2, 16), 1
        case "bare":
            width, layers = (2048, 12) if large else (32, 2)
            return Residual(width, Bare, layers), torch.randn(2, 16), 1 + layers
        case "convolutions":
            width, layers = (1024, 10) if large else (32, 2)
            return Residual(width, lambda w: nn.Conv2d(w, w, 3, padding=1), layers, images=True), torch.randn(2, 16), 1
        case "transposed":
            width, layers = (1024, 10) if large else (32, 2)
            return Residual(width, lambda w: nn.ConvTranspose2d(w, w, 3, padding=1), layers, images=True), torch.randn(2, 16), 1
        case _:
            width, layers = (1024, 8) if large else (32, 2)
            return (
                Stories(kind, width, layers),
                torch.randint(0, 100, (2, 8)),
                1 + 2 * layers if kind == "gpt2" else 2 + 4 * layers,
            )


def grown(kind: str) -> tuple[float, float]:
    """By how much the peak memory of this process grows while a model is analysed, and then by a copy of its weights.

    As fractions of the bytes of the weights.
    """
    model, x, _ = built(kind, large=False)
    dependency_groups(model.eval(), x)  # what is imported and set up once
    model, x, count = built(kind, large=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)  # so that its pages are there
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before, weights = _resident("VmRSS"), sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights > 350e6
    groups = dependency_groups(model.eval(), x)
    analysed = _resident("VmHWM")
    assert len(groups.groups) == count
    assert not isinstance(model, Residual) or {group.size for group in groups.groups} == {model.first.out_features}
    second = [parameter.detach().clone() for parameter in model.parameters()]
    assert len(second) == len([*model.parameters()])
    return (analysed - before) / weights, (_resident("VmHWM") - before) / weights


def _resident(entry: str) -> int:
    """VmRSS: bytes in memory now. VmHWM: the most there have been since the peak was forgotten."""
    found = re.search(rf"{entry}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "kind",
    ["linear", "bare", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("convolutions", "transposed", "gpt2", "llama"))],
)
def test_an_analysis_needs_no_second_copy_of_the_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))  # glibc gives back at once what is freed
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        analysis, copied = process.submit(grown, kind).result()
    assert analysis <= MOST
    assert copied >= 0.9  # a copy would have been seen
