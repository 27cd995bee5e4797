"""What an analysis allocates: far less than the weights of a model, whatever its layers, and if one of them is most of it."""

import multiprocessing
import pathlib
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from paredown.graph.groups import dependency_groups

FAST = ("linear", "bare", "lopsided")
MOST = 0.45  # of the bytes of all weights; 0.08 to 0.36 were measured


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


class Lopsided(nn.Module):
    """As VGG: most weights in the layer that reads all places of all channels. Inputs (batch, 3, 14, 14); 8 classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, width, 3, padding=1), nn.MaxPool2d(2)
        self.first, self.second, self.last = nn.Linear(49 * width, 8 * width), nn.Linear(8 * width, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.conv(x).relu()).flatten(1)
        return self.last(self.second(self.first(h).relu()).relu())


class Recurrent(nn.Module):
    """Layers of one LSTM. Inputs (batch, length, 16); 8 classes."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, width), nn.Linear(width, 8)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(self.first(x))[0][:, -1])


class Stories(nn.Module):
    """A language model of transformers, its table tied to its head. Inputs: tokens (batch, length)."""

    def __init__(self, name: str, width: int, layers: int, words: int) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        if name == "gpt2":
            config = transformers.GPT2Config(vocab_size=words, n_embd=width, n_layer=layers, n_head=4)
        else:
            config = transformers.LlamaConfig(
                vocab_size=words,
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


@dataclass(frozen=True)
class Kind:
    """A model of a width, its inputs, and how many groups it has with so many layers."""

    model: Callable[[int, int], nn.Module]
    inputs: Tensor
    groups: Callable[[int], int]
    large: tuple[int, int]  # width and layers
    small: tuple[int, int] = (32, 2)


def residual(layer: Callable[[int], nn.Module], *, images: bool = False) -> Callable[[int, int], nn.Module]:
    return lambda width, layers: Residual(width, layer, layers, images=images)


def stories(name: str, words: int) -> Callable[[int, int], nn.Module]:
    return lambda width, layers: Stories(name, width, layers, words)


VECTORS, TOKENS = torch.randn(2, 16), torch.randint(0, 100, (2, 8))
KINDS = {
    "linear": Kind(residual(lambda w: nn.Linear(w, w)), VECTORS, lambda _: 1, (2048, 24)),
    "bare": Kind(residual(Bare), VECTORS, lambda layers: 1 + layers, (2048, 12)),
    "lopsided": Kind(lambda width, _: Lopsided(width), torch.randn(2, 3, 14, 14), lambda _: 3, (512, 1), (8, 1)),
    "convolutions": Kind(residual(lambda w: nn.Conv2d(w, w, 3, padding=1), images=True), VECTORS, lambda _: 1, (1024, 10)),
    "transposed": Kind(residual(lambda w: nn.ConvTranspose2d(w, w, 3, padding=1), images=True), VECTORS, lambda _: 1, (1024, 10)),
    "lstm": Kind(Recurrent, torch.randn(2, 6, 16), lambda layers: 1 + layers, (2048, 3)),
    "gpt2": Kind(stories("gpt2", 2000), TOKENS, lambda layers: 1 + 2 * layers, (1024, 8)),
    "llama": Kind(stories("llama", 8000), TOKENS, lambda layers: 2 + 4 * layers, (1024, 8)),
    "table": Kind(stories("llama", 50_000), TOKENS, lambda layers: 2 + 4 * layers, (1024, 4)),
}


def grown(kind: str) -> tuple[float, float]:
    """By how much the peak memory of this process grows while a model is analysed, and then by a copy of its weights.

    As fractions of the bytes of the weights.
    """
    made, x = KINDS[kind], KINDS[kind].inputs
    dependency_groups(made.model(*made.small).eval(), x)  # what is imported and set up once
    model = made.model(*made.large)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)  # so that its pages are there
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before, weights = _resident("VmRSS"), sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights > 350e6
    groups = dependency_groups(model.eval(), x)
    analysed = _resident("VmHWM")
    assert len(groups.groups) == made.groups(made.large[1])
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
    [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in KINDS],
)
def test_an_analysis_needs_no_second_copy_of_the_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))  # glibc gives back at once what is freed
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        analysis, copied = process.submit(grown, kind).result()
    assert analysis <= MOST
    assert copied >= 0.9  # a copy would have been seen
