"""Random small nets: a stem, a few random steps, a head. Each step takes a tensor (n, c, h, w) to the next, of width `out`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

SIZE = 4  # pixels
WIDEST = 12  # from here on no step makes it wider


class Step(nn.Module):
    """layer: what it is made of. out: channels that leave it."""

    def __init__(self, layer: nn.Module, out: int) -> None:
        super().__init__()
        self.layer, self.out = layer, out


class Plain(Step):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


class Bare(Step):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Residual(Step):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layer(x))


class Dense(Step):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.relu(self.layer(x))], 1)


class Gate(Step):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(self.layer(b))


class Split(Step):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(x.shape[1] // 2, 1)[:2]
        return F.relu(a) + self.layer(b)


class Sliced(Step):
    """Two slices, each with a layer of its own, joined again."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        first, second, last = self.layer.children()
        return last(torch.cat([first(x[:, :half]), second(x[:, half:])], 1))


class Pad(Step):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 2, 2))


class Shuffle(Step):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Interleave(Step):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, ::2], x[:, 1::2]], 2).flatten(1, 2)


class Excite(Step):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.layer(x)


class Norm(Step):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(Step):
    """Self-attention of two heads over the positions of an image, written out or by torch's own operator."""

    def __init__(self, width: int, *, whole: bool) -> None:
        super().__init__(nn.ModuleList([nn.Linear(width, 3 * width), nn.Linear(width, width)]), width)
        self.num_heads, self.whole = 2, whole

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        inside, last = self.layer.children()
        tokens = x.flatten(2).transpose(1, 2)  # (n, positions, c)
        q, k, v = inside(tokens).reshape(n, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v) if self.whole else (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return x + last(y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(n, -1, h, w)


def _residual(c: int) -> Step:
    return Residual(nn.Sequential(nn.Conv2d(c, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, c, 1)), c)


def _sliced(c: int) -> Step:
    return Sliced(nn.ModuleList([nn.Conv2d(c // 2, 5, 1), nn.Conv2d(c - c // 2, 3, 1), nn.Conv2d(8, c, 1)]), c)


def _excite(c: int) -> Step:
    return Excite(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), nn.Sigmoid()), c)


STEPS: dict[str, Callable[[int], Step]] = {
    "conv": lambda c: Plain(nn.Conv2d(c, c, 1), c),
    "residual": _residual,
    "dense": lambda c: Dense(nn.Conv2d(c, 4, 1), c + 4),
    "gate": lambda c: Gate(nn.Conv2d(c // 2, c // 2, 1), c // 2),
    "split": lambda c: Split(nn.Conv2d(c // 2, c // 2, 1), c // 2),
    "sliced": _sliced,
    "pad": lambda c: Pad(nn.Identity(), c + 4),
    "grouped": lambda c: Plain(nn.Conv2d(c, c, 3, padding=1, groups=2), c),
    "depthwise": lambda c: Plain(nn.Conv2d(c, c, 3, padding=1, groups=c), c),
    "shuffle": lambda c: Shuffle(nn.Identity(), c),
    "interleave": lambda c: Interleave(nn.Identity(), c),
    "excite": _excite,
    "heads": lambda c: Attention(c, whole=False),
    "sdpa": lambda c: Attention(c, whole=True),
    "layer_norm": lambda c: Norm(nn.LayerNorm(c), c),
    "batch_norm": lambda c: Bare(nn.BatchNorm2d(c), c),
    "transposed": lambda c: Plain(nn.ConvTranspose2d(c, c, 1), c),
}
_NARROWING, _WIDENING = {"gate", "split"}, {"pad", "dense"}


def descriptions() -> st.SearchStrategy[tuple[int, tuple[str, ...]]]:
    """(width of the stem, steps)."""
    return st.tuples(st.sampled_from((4, 8, 12)), st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=4).map(tuple))


def image(seed: int = 0) -> Tensor:
    return torch.randn(2, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class RandomGraph(nn.Module):
    """stem -> steps -> flatten -> linear. A step that would make it too narrow, too wide or odd is a convolution."""

    def __init__(self, width: int, steps: tuple[str, ...]) -> None:
        super().__init__()
        self.stem, self.steps = nn.Conv2d(2, width, 1), nn.ModuleList()
        for name in steps:
            unfit = (name in _NARROWING and (width < 8 or width % 4)) or (name in _WIDENING and width > WIDEST)
            step = STEPS["conv" if unfit else name](width)
            self.steps.append(step)
            width = step.out
        self.head = nn.Linear(width * SIZE * SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in self.steps:
            x = step(x)
        return self.head(x.flatten(1))
