"""Models of the zoo that no collection has: small ones of our own, and transformers' classes with random weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paredown.task.batches import Inputs

_GENERATOR = torch.Generator().manual_seed(0)


class LSTMClassifier(nn.Module):
    """tokens (batch, time) -> classes, from the last step of a bidirectional two-layer LSTM."""

    def __init__(self, vocabulary: int = 100, width: int = 32, hidden: int = 48, classes: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))  # (batch, time, 2 * hidden)
        logits: Tensor = self.head(states[:, -1])
        return logits


class UNet(nn.Module):
    """Two levels down, two up, the skips concatenated."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.down1, self.down2 = _double(3, width), _double(width, 2 * width)
        self.middle = _double(2 * width, 4 * width)
        self.grow2, self.grow1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.up2, self.up1 = _double(4 * width, 2 * width), _double(2 * width, width)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        y = self.middle(self.pool(second))
        y = self.up2(torch.cat([second, self.grow2(y)], 1))
        logits: Tensor = self.head(self.up1(torch.cat([first, self.grow1(y)], 1)))
        return logits


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's own weight, transposed; two hidden layers share one weight."""

    def __init__(self, width: int = 40, hidden: int = 24) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, hidden)
        self.first, self.second = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.second.weight = self.first.weight
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x).relu()
        h = self.second(self.first(h).relu()).relu()
        return nn.functional.linear(h, self.encoder.weight.t(), self.bias)


class TwoInputs(nn.Module):
    """An image and a row of figures, joined before the classifier; takes a tuple."""

    def __init__(self, width: int = 24, classes: int = 5) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3))
        self.row = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Sequential(nn.Linear(3 * width, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        joined = torch.cat([self.image(image).relu().mean((2, 3)), self.row(row)], 1)
        logits: Tensor = self.head(joined)
        return logits


class DictInputs(TwoInputs):
    """The same, called by name; returns a dict of two outputs."""

    def forward(self, image: Tensor, row: Tensor) -> Any:
        features = self.row(row)
        return {"logits": super().forward(image, row), "row": features.mean(1)}


def lstm() -> tuple[nn.Module, Inputs]:
    return LSTMClassifier(), torch.randint(0, 100, (3, 7), generator=_GENERATOR)


def unet() -> tuple[nn.Module, Inputs]:
    return UNet(), torch.randn(3, 3, 32, 32, generator=_GENERATOR)


def tied() -> tuple[nn.Module, Inputs]:
    return TiedAutoencoder(), torch.randn(3, 40, generator=_GENERATOR)


def two_inputs() -> tuple[nn.Module, Inputs]:
    return TwoInputs(), (torch.randn(3, 3, 16, 16, generator=_GENERATOR), torch.randn(3, 10, generator=_GENERATOR))


def dict_inputs() -> tuple[nn.Module, Inputs]:
    return DictInputs(), {
        "image": torch.randn(3, 3, 16, 16, generator=_GENERATOR),
        "row": torch.randn(3, 10, generator=_GENERATOR),
    }


def efficientnet_lite0() -> tuple[nn.Module, Inputs]:
    import timm

    return timm.create_model("efficientnet_lite0", pretrained=False), torch.randn(3, 3, 64, 64, generator=_GENERATOR)


def minilm_l6() -> tuple[nn.Module, Inputs]:
    """all-MiniLM-L6's configuration: BERT of 6 layers, width 384, 12 heads."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    ids = torch.randint(0, 30522, (3, 9), generator=_GENERATOR)
    return BertModel(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def llama_260k() -> tuple[nn.Module, Inputs]:
    """stories260K's configuration: width 64, 5 layers, 8 heads over 4 key/value heads, a tied head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": torch.randint(0, 512, (3, 9), generator=_GENERATOR)}


def _double(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
    )  # fmt: skip


MODELS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    function.__name__: function
    for function in (lstm, unet, tied, two_inputs, dict_inputs, efficientnet_lite0, minilm_l6, llama_260k)
}
