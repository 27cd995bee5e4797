"""Small models for the tests of quantization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mixed(nn.Module):
    """What is awkward about real models in one: named inputs, nested outputs, in-place operators, a shared convolution, a
    batch norm that can't be folded, dropouts. Inputs x (batch, 3, 8, 8), scale (batch, 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.shared, self.norm1, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu, self.late = nn.ReLU(inplace=True), nn.BatchNorm2d(8)
        self.drop, self.drop_channels = nn.Dropout(0.5, inplace=True), nn.Dropout2d(0.3)
        self.hidden, self.head, self.layer_norm = nn.Linear(8, 16), nn.Linear(16, 4), nn.LayerNorm(16)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, object]:
        first = self.relu(self.norm(self.conv(x)))
        y = self.norm2(self.shared(self.relu(self.norm1(self.shared(first)))))
        y += first
        y = F.relu(self.late(self.relu(y)))
        y = self.drop_channels(F.max_pool2d(y, 2))
        y = self.drop(F.relu(self.hidden(y.mean((2, 3)))))
        return {"logits": self.head(self.layer_norm(y)) * scale, "features": [y, (first,)]}


def mixed() -> Mixed:
    torch.manual_seed(0)
    model = Mixed().train()
    for _ in range(5):
        model(torch.randn(16, 3, 8, 8), torch.ones(16, 1))
    return model.eval()


def mixed_inputs(samples: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(samples, 3, 8, 8, generator=generator), "scale": torch.rand(samples, 1, generator=generator)}


class Gated(nn.Module):
    """Squeeze and excitation as many write it, the gate expanded, behind SiLUs; the last sigmoid is the result."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.out, self.act = nn.Conv2d(16, 5, 1), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        gate = torch.sigmoid(self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))))
        return torch.sigmoid(self.out(x * gate.expand_as(x)))


class Scored(nn.Module):
    """The end of a detector: boxes and probabilities side by side, the latter also multiplied with each other; most are small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box, self.score = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 6, 1)
        with torch.no_grad():
            self.score.weight.mul_(8)
            self.score.bias.fill_(-5.0)  # type: ignore[union-attr]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        shares = torch.sigmoid(self.score(x))
        return torch.cat([self.box(x), shares, shares[:, :1] * shares[:, 1:]], 1)


class PaddedShortcut(nn.Module):
    """A block of the CIFAR ResNet: the shortcut is a strided slice, zero-padded on channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.conv2(F.relu(self.conv1(x)))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + y)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Attention(nn.Module):
    """A pre-norm transformer block over (batch, 6, 8), then a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).view(x.shape[0], 6, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        out: Tensor = self.head(x[:, 0])
        return out


class Recurrent(nn.Module):
    """Tokens (batch, 7) of 20 -> an embedding, a bidirectional LSTM of two layers, a GRU, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 12, 2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(24, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(self.lstm(self.table(tokens))[0])[0][:, -1])
        return out


def relative(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """||other(x) - model(x)|| / ||model(x)||."""
    with torch.no_grad():
        expected = model(x)
        return float((other(x) - expected).norm() / expected.norm())
