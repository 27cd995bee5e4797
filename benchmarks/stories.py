"""stories260K: a Llama of 260 thousand parameters, its tokenizer, and tokens to calibrate and to measure it on.

The model was trained on TinyStories, which is not among the data beside the project. So its own samples (temperature 1,
another seed for each use) stand for the text that it knows, and Shakespeare and WikiText-2 for text that it doesn't.
"""

import functools
import itertools
import math
import pathlib
import re
import struct
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from examples.cifar10_resnet20 import DATA, data

LENGTH = 128  # tokens in a row, the beginning-of-story token included
_BEGIN = 1


def model() -> nn.Module:
    """Tokens (batch, length) of int64 -> logits (batch, length, 512)."""
    llama: nn.Module = data().TinyLlama().eval()
    return llama


def encode(text: str) -> list[int]:
    """Byte-pair encoding as llama2.c does it: of two neighbours the pair with the best score is merged, until none is left."""
    pieces = re.findall(r" ?[^ ]+| ", f" {text}")
    return [token for piece in pieces for token in _encode_piece(piece)]


def rows(tokens: Iterable[int], count: int) -> Tensor:
    """(count, LENGTH): consecutive pieces of the text, each after the beginning-of-story token."""
    flat = torch.tensor(list(tokens)[: count * (LENGTH - 1)]).view(count, LENGTH - 1)
    return F.pad(flat, (1, 0), value=_BEGIN)


def text_rows(name: str, count: int, *, skip: int = 0) -> Tensor:
    """The beginning of a text of the data beside the project, after `skip` characters. (count, LENGTH)"""
    text = (DATA.parent / "text" / f"{name}.txt").read_text("utf-8")[skip:]
    return rows(encode(text[: count * LENGTH * 4]), count)


@torch.no_grad()
def sampled_rows(llama: nn.Module, count: int, seed: int) -> Tensor:
    """Stories that the model tells, at temperature 1. (count, LENGTH)"""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((count, 1), _BEGIN)
    kept = [torch.empty(2, count, llama.kv_heads, 0, llama.head_dim) for _ in llama.layers]
    while tokens.shape[1] < LENGTH:
        probabilities = _told_on(llama, tokens, kept).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], 1)
    return tokens


def _told_on(llama: nn.Module, tokens: Tensor, kept: list[Tensor]) -> Tensor:
    """What `llama(tokens)[:, -1]` gives, (count, 512), where all but the last token went through before. kept: keys and values of
    each layer, (2, count, heads, length, width), which grow by this token's.
    """
    count, place, width = len(tokens), tokens.shape[1] - 1, llama.head_dim
    angle = place * 1e4 ** (-torch.arange(0, width, 2).float() / width)

    def turned(z: Tensor) -> Tensor:
        even, odd = z[..., ::2], z[..., 1::2]
        pair = even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()
        return torch.stack(pair, -1).flatten(-2)

    x = llama.tok(tokens[:, -1])
    for i, layer in enumerate(llama.layers):
        read = layer["n1"](x)
        q, k, v = (layer[name](read).view(count, -1, 1, width) for name in "qkv")
        kept[i] = torch.cat([kept[i], torch.stack([turned(k), v])], 3)
        keys, values = kept[i].repeat_interleave(llama.heads // llama.kv_heads, 2)
        x = x + layer["o"](F.scaled_dot_product_attention(turned(q), keys, values).reshape(count, -1))
        read = layer["n2"](x)
        x = x + layer["w2"](F.silu(layer["w1"](read)) * layer["w3"](read))
    return llama.norm(x) @ llama.tok.weight.T


def told(llama: nn.Module, count: int, seed: int) -> Tensor:
    """The same, told once and kept beside the other benchmarks' results of long work. (count, LENGTH)"""
    file = pathlib.Path("runs/bench/stories") / f"{count}-{seed}.txt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = sampled_rows(llama, count, seed).tolist()
        file.write_text("\n".join(" ".join(map(str, line)) for line in lines))
    return torch.tensor([[int(token) for token in line.split()] for line in file.read_text().splitlines()])


@torch.no_grad()
def losses(llama: nn.Module, tokens: Tensor) -> Tensor:
    """(batch,): the mean negative log-likelihood of each row's tokens but the first, in nats."""
    parts = [token_loss(llama(part), part) for part in torch.split(tokens, 32)]
    return torch.cat(parts)


def token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """logits (batch, length, vocabulary), tokens (batch, length) -> (batch,), in nats."""
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


def perplexity(llama: nn.Module, tokens: Tensor) -> float:
    return math.exp(float(losses(llama, tokens).mean()))


def task(llama: nn.Module, train: Tensor, validation: Tensor, batch: int = 32) -> paredown.Task:
    """The task of telling the next token; the metric is the mean loss in nats, lower is better."""
    return paredown.Task(
        model=llama,
        example_inputs=(train[:2],),
        train=[(part, part) for part in torch.split(train, batch)],
        validation=[(part, part) for part in torch.split(validation, batch)],
        loss=lambda logits, tokens: token_loss(logits, tokens).mean(),
        metric=paredown.Metric(token_loss, higher_is_better=False, name="nats"),
        name="stories260K",
    )


@functools.cache
def _vocabulary() -> dict[bytes, tuple[int, float]]:
    """Each token's bytes -> its number and score."""
    raw, at, found = (DATA.parent / "weights" / "tok512.bin").read_bytes(), 4, {}
    while at < len(raw):
        score, length = struct.unpack_from("<fi", raw, at)
        found.setdefault(raw[at + 8 : at + 8 + length], (len(found), score))
        at += 8 + length
    return found


@functools.cache
def _encode_piece(piece: str) -> tuple[int, ...]:
    vocabulary, parts = _vocabulary(), [character.encode() for character in piece]
    while True:
        pairs = [(vocabulary[a + b][1], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in vocabulary]
        if not pairs:
            break
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return tuple(token for part in parts for token in _tokens(part))


def _tokens(part: bytes) -> list[int]:
    """The token of these bytes; where there is none, one a byte (they follow the 3 special tokens)."""
    found = _vocabulary().get(part)
    return [found[0]] if found is not None else [byte + 3 for byte in part]
