"""Small transformers and recurrent nets, one per way of writing attention, with inputs that fit them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = tuple[nn.Module, Any]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class SelfAttention(nn.Module):
    """Fused query, key and value; heads and their width are attributes; the scale is the operator's own."""

    def __init__(self, width: int, heads: int, *, by_hand: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.by_hand = heads, width // heads, by_hand
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm: nn.Module = nn.LayerNorm(self.head_dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = self.q_norm(q)
        if self.by_hand:
            weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, width: int, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = norm(width), norm(width), attention
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Classifier(nn.Module):
    def __init__(self, blocks: list[nn.Module], width: int) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(5, width), nn.Parameter(torch.randn(1, 6, width, generator=_seeded()))
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.position)).mean(1))


TOKENS = torch.randn(3, 6, 5, generator=_seeded())


def fused() -> Case:
    return Classifier([Block(SelfAttention(24, 3), 24) for _ in range(2)], 24).eval(), TOKENS


def by_hand() -> Case:
    return Classifier([Block(SelfAttention(24, 3, by_hand=True), 24)], 24).eval(), TOKENS


def query_norm() -> Case:
    return Classifier([Block(SelfAttention(24, 3, norm=True), 24)], 24).eval(), TOKENS


class WidthOfHeads(nn.Module):
    """As Swin: the width of a head is the width of the stream divided by their number, and so is the scale."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (c // self.num_heads) ** -0.5, qkv[1], qkv[2]
        y = torch.softmax(q.matmul(k.transpose(-2, -1)), -1).matmul(v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


def width_of_heads() -> Case:
    return Classifier([Block(WidthOfHeads(24, 3), 24) for _ in range(2)], 24).eval(), TOKENS


class Einsum(nn.Module):
    """Separate layers, products by einsum, a scale that is an attribute."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.n_heads, self.head_dim)) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k) * self.scale, -1)
        return self.o(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


def einsum() -> Case:
    return Classifier([Block(Einsum(24, 3), 24)], 24).eval(), TOKENS


class Grouped(nn.Module):
    """Two queries to each key and value."""

    def __init__(self, width: int, *, enabled: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.enabled = 4, 2, enabled
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width // 2), nn.Linear(width, width // 2)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for layer in (self.k, self.v))
        if not self.enabled:
            k, v = (z.repeat_interleave(2, 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.enabled)
        return self.o(y.transpose(1, 2).flatten(2))


def grouped_queries() -> Case:
    return Classifier([Block(Grouped(32, enabled=True), 32, nn.RMSNorm)], 32).eval(), TOKENS


def repeated_keys() -> Case:
    return Classifier([Block(Grouped(32, enabled=False), 32, nn.RMSNorm)], 32).eval(), TOKENS


class RootMeanSquare(nn.Module):
    """A normalization written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Standardized(nn.Module):
    """Another one, over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * (x - mean) / torch.sqrt(variance + 1e-6) + self.bias[:, None, None]


def handwritten_norm() -> Case:
    return Classifier([Block(SelfAttention(24, 3), 24, RootMeanSquare)], 24).eval(), TOKENS


class Normalized(nn.Module):
    """stem -> norm -> conv -> norm, with a residual connection."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)
        self.norm1, self.norm2 = norm(16), norm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        return self.head((x + F.relu(self.norm2(self.conv(x)))).mean((2, 3)))


IMAGE = torch.randn(3, 3, 8, 8, generator=_seeded())


def group_norm() -> Case:
    return Normalized(lambda c: nn.GroupNorm(4, c)).eval(), IMAGE


def one_group() -> Case:
    return Normalized(lambda c: nn.GroupNorm(1, c)).eval(), IMAGE


def instance_norm() -> Case:
    return Normalized(lambda c: nn.InstanceNorm2d(c, affine=True)).eval(), IMAGE


def channel_norm() -> Case:
    return Normalized(Standardized).eval(), IMAGE


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return Classifier([nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)], 16).eval(), TOKENS


class Recurrent(nn.Module):
    """Tokens -> a recurrent layer -> the last output, or the final state -> classes."""

    def __init__(self, kind: str, *, state: bool = False, **options: Any) -> None:
        super().__init__()
        self.state, directions = state, 2 if options.get("bidirectional") else 1
        self.embed = nn.Embedding(20, 12)
        self.rnn = getattr(nn, kind)(12, 16, batch_first=True, **options)
        self.head = nn.Linear(options.get("proj_size") or 16 * (1 if state else directions), 3)

    def forward(self, tokens: Tensor) -> Tensor:
        y, last = self.rnn(self.embed(tokens))
        if self.state:
            return self.head((last[0] if isinstance(last, tuple) else last)[-1])
        return self.head(y[:, -1])


IDS = torch.randint(0, 20, (3, 7), generator=_seeded())


def recurrent(kind: str, **options: Any) -> Case:
    return Recurrent(kind, **options).eval(), IDS


def _torchvision(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    if name == "vit":
        return models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7)
    if name == "swin":
        return models.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [4, 4], num_classes=7)
    if name == "maxvit":
        return models.MaxVit((32, 32), 8, 4, [16, 32], [1, 1], 8, 0.0, num_classes=7)
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(16, 32, 2), block(32, None, 1)], num_classes=7)


def real(name: str) -> Case:
    """Tiny configurations of classes that others wrote."""
    torch.manual_seed(0)
    image, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, 50, (2, 7))
    if name == "timm vit":
        timm = pytest.importorskip("timm")
        options = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
        return timm.create_model("vit_tiny_patch16_224", **options).eval(), image
    if name == "bert":
        hf = pytest.importorskip("transformers")
        config = hf.BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=16, num_labels=3,
        )  # fmt: skip
        return hf.BertForSequenceClassification(config).eval(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if name == "gpt2":
        hf = pytest.importorskip("transformers")
        config = hf.GPT2Config(
            vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0, use_cache=False
        )  # fmt: skip
        return hf.GPT2LMHeadModel(config).eval(), {"input_ids": tokens}
    if name == "llama":
        hf = pytest.importorskip("transformers")
        config = hf.LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=True, use_cache=False,
        )  # fmt: skip
        return hf.LlamaForCausalLM(config).eval(), {"input_ids": tokens}
    return _torchvision(name).eval(), image
