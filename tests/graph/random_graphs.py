"""Random small nets: a stem, a few steps, wired at random, a head. A step takes tensors (n, c, h, w) to one of width `out`."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 4  # pixels
WIDEST = 16  # channels
LONGEST = 4  # steps


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


class Add(Step):
    """Of two tensors."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(x + self.layer(y))


class Cat(Step):
    """Of two tensors."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], 1)


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
JOINS: dict[str, Callable[[int, int], Step]] = {  # of two tensors that were made before
    "add": lambda c, d: Add(nn.Identity() if c == d else nn.Conv2d(d, c, 1), c),
    "cat": lambda c, d: Cat(nn.Identity(), c + d),
}
KINDS = (*STEPS, *JOINS)
_NARROWING, _WIDENING = {"gate", "split"}, {"pad", "dense", "cat"}


@dataclass(frozen=True)
class Description:
    """stem: its width. steps: each a kind, and the numbers of the tensors it takes; 0 is the stem's, 1 the first step's."""

    stem: int
    steps: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def ends(self) -> list[int]:
        """The numbers of the tensors that no step takes."""
        taken = {number for _, sources in self.steps for number in sources}
        return [number for number in range(len(self.steps) + 1) if number not in taken]

    def __str__(self) -> str:
        """The same for two graphs whose steps are listed in another order."""
        made = [f"stem {self.stem}"]
        for kind, sources in self.steps:
            made.append(f"{kind}({', '.join(made[number] for number in sources)})")
        return " | ".join(sorted(made[number] for number in self.ends))


def descriptions(kind: str, count: int, seen: set[str]) -> list[Description]:
    """So many in which this kind of step occurs, none of which was `seen` before."""
    draw, found = random.Random(kind), list[Description]()
    while len(found) < count:
        description = drawn_from(draw, kind)
        if description is not None and str(description) not in seen:
            seen.add(str(description))
            found.append(description)
    return found


def drawn_from(draw: random.Random, kind: str) -> Description | None:
    """None where a step of this kind doesn't fit in its place."""
    widths, steps = [draw.choice((4, 8, 12))], list[tuple[str, tuple[int, ...]]]()
    length = draw.randint(1, LONGEST)
    place = draw.randrange(length)
    for i in range(length):
        chosen = kind if i == place else draw.choice(KINDS)
        sources = tuple(draw.sample(range(i + 1), 2 if chosen in JOINS and i else 1))
        if i and chosen not in JOINS and draw.random() < 0.5:
            sources = (i,)  # long chains are as frequent as what branches
        if not _fits(chosen, *(widths[number] for number in sources)):
            return None
        steps.append((chosen, sources))
        widths.append(_step(chosen, *(widths[number] for number in sources)).out)
    return Description(widths[0], tuple(steps))


def _fits(kind: str, width: int, *second: int) -> bool:
    """Nothing gets too narrow, too wide or odd, and what joins has two tensors."""
    narrow = kind in _NARROWING and (width < 8 or width % 4 > 0)
    wide = kind in _WIDENING and width + (sum(second) or 4) > WIDEST
    return not narrow and not wide and (kind in JOINS) == bool(second)


def _step(kind: str, *widths: int) -> Step:
    return JOINS[kind](*widths) if kind in JOINS else STEPS[kind](*widths)


def image(seed: int = 0) -> Tensor:
    return torch.randn(2, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class RandomGraph(nn.Module):
    """stem -> steps -> what no step takes, concatenated -> flatten -> linear."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description, widths = description, [description.stem]
        self.stem, self.steps = nn.Conv2d(2, description.stem, 1), nn.ModuleList()
        for kind, sources in description.steps:
            step = _step(kind, *(widths[number] for number in sources))
            self.steps.append(step)
            widths.append(step.out)
        self.head = nn.Linear(sum(widths[number] for number in description.ends) * SIZE * SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = [self.stem(x)]
        for step, (_, sources) in zip(self.steps, self.description.steps, strict=True):
            made.append(step(*(made[number] for number in sources)))
        return self.head(torch.cat([made[number] for number in self.description.ends], 1).flatten(1))
