"""Small nets, one per way in which channels are tied, with inputs that fit them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Conv = nn.Conv2d
IMAGE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """`steps(self, x)` over named layers."""

    def __init__(self, steps: Callable[["Net", Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.steps = steps
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.steps(self, x)


def depthwise() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        return s.d(F.relu6(s.c(F.hardswish(s.b(s.a(x)))))).mean((2, 3))

    return Net(steps, a=Conv(3, 8, 3), b=Conv(8, 16, 3, groups=8), c=Conv(16, 12, 1), d=Conv(12, 5, 1)).eval(), IMAGE


def grouped() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        return s.c(F.relu(s.b(F.relu(s.a(x)))))

    return Net(steps, a=Conv(3, 16, 3), b=Conv(16, 24, 3, groups=4), c=Conv(24, 4, 1)).eval(), IMAGE


def dense() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        a = s.a(x)
        ab = torch.cat([a, s.b(a)], 1)
        return s.d(torch.cat([ab, s.c(ab)], 1))

    layers = {"a": Conv(3, 8, 3, padding=1), "b": Conv(8, 6, 3, padding=1), "c": Conv(14, 5, 1), "d": Conv(19, 4, 1)}
    return Net(steps, **layers).eval(), IMAGE


def gated() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        p, q = s.a(x).chunk(2, 1)
        return s.d(p * q.sigmoid())

    return Net(steps, a=Conv(3, 16, 3), d=Conv(8, 4, 1)).eval(), IMAGE


def chunked() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        p, q = s.a(x).chunk(2, 1)
        return s.e(torch.cat([s.d(p), q], 1))

    return Net(steps, a=Conv(3, 16, 3), d=Conv(8, 8, 1), e=Conv(16, 4, 1)).eval(), IMAGE


def split_by_number() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        p, q = s.a(x).split([6, 10], 1)
        return torch.cat([s.d(p), s.e(q)], 1)

    return Net(steps, a=Conv(3, 16, 3), d=Conv(6, 4, 1), e=Conv(10, 4, 1)).eval(), IMAGE


def sliced() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return torch.cat([s.b(y[:, :8]), s.c(y[:, 8:])], 1)

    return Net(steps, a=Conv(3, 16, 3), b=Conv(8, 3, 1), c=Conv(8, 3, 1)).eval(), IMAGE


def zeroed() -> tuple[nn.Module, Tensor]:
    """As in Swin v2, whose keys have no bias: zeros are written into a part of a copy."""

    def steps(s: Any, x: Tensor) -> Tensor:
        bias = s.a.bias.clone()
        bias[len(bias) // 2 :].zero_()
        p, q = F.linear(x, s.a.weight, bias).chunk(2, -1)
        return s.d(p * q.sigmoid())

    return Net(steps, a=nn.Linear(12, 16), d=nn.Linear(8, 4)).eval(), TOKENS


def flattened() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        return s.d(F.max_pool2d(s.b(F.relu(s.a(x))), 2).flatten(1))

    return Net(steps, a=Conv(3, 8, 3, padding=1), b=Conv(8, 6, 3, padding=1), d=nn.Linear(96, 10)).eval(), IMAGE


def squeezed() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.d(y * torch.sigmoid(s.c(F.relu(s.b(F.adaptive_avg_pool2d(y, 1))))))

    return Net(steps, a=Conv(3, 16, 3), b=Conv(16, 4, 1), c=Conv(4, 16, 1), d=Conv(16, 4, 1)).eval(), IMAGE


def shuffled() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        y = s.b(s.a(x))
        n, c, h, w = y.shape
        return s.c(y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w))

    return Net(steps, a=Conv(3, 16, 1), b=Conv(16, 16, 1, groups=4), c=Conv(16, 8, 1)).eval(), IMAGE


def in_place() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.c(F.relu(y.add_(s.b(y)).mul_(2), inplace=True))

    return Net(steps, a=Conv(3, 8, 1), b=Conv(8, 8, 1), c=Conv(8, 3, 1)).eval(), IMAGE


def heads() -> tuple[nn.Module, Tensor]:
    """The number of heads follows the width; the width of a head is a literal."""

    def steps(s: Any, x: Tensor) -> Tensor:
        return s.o(F.relu(s.q(x).unflatten(-1, (-1, 6)).transpose(1, 2)).transpose(1, 2).flatten(2))

    return Net(steps, q=nn.Linear(12, 24), o=nn.Linear(24, 3)).eval(), TOKENS


def volume() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        return s.b(F.interpolate(s.a(x), scale_factor=2.0))

    x = torch.randn(2, 3, 5, 5, 5, generator=torch.Generator().manual_seed(3))
    return Net(steps, a=nn.Conv3d(3, 8, 3), b=nn.ConvTranspose3d(8, 3, 1)).eval(), x


def signal() -> tuple[nn.Module, Tensor]:
    def steps(s: Any, x: Tensor) -> Tensor:
        return s.b(F.avg_pool1d(s.p(s.n(s.a(x))), 2))

    layers = {"a": nn.Conv1d(3, 8, 3), "n": nn.BatchNorm1d(8), "p": nn.PReLU(8), "b": nn.Conv1d(8, 3, 1)}
    return Net(steps, **layers).eval(), torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(4))


def tied_head() -> tuple[nn.Module, Tensor]:
    """Token ids in, the embedding's own transpose as the last layer."""

    def steps(s: Any, t: Tensor) -> Tensor:
        h = s.e(t)
        return (h + s.m2(F.gelu(s.m1(h)))) @ s.e.weight.T

    layers = {"e": nn.Embedding(20, 8), "m1": nn.Linear(8, 16), "m2": nn.Linear(16, 8)}
    return Net(steps, **layers).eval(), torch.randint(0, 20, (3, 5), generator=torch.Generator().manual_seed(5))


def one_of(layer: str) -> tuple[nn.Module, Tensor]:
    """a -> relu -> b -> an operator that needs every channel -> c."""
    between: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda y: F.softmax(y, -1),
        "fft": lambda y: torch.fft.rfft(y, dim=1).abs(),
        "sum": lambda y: y.sum(1, keepdim=True),
    }

    def steps(s: Any, x: Tensor) -> Tensor:
        return s.c(between[layer](s.b(F.relu(s.a(x)))))

    widths = {"softmax": 8, "fft": 5, "sum": 1}
    return Net(steps, a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(widths[layer], 3)).eval(), ROWS


PRUNABLE: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    f.__name__: f
    for f in (
        depthwise,
        grouped,
        dense,
        gated,
        chunked,
        sliced,
        zeroed,
        flattened,
        squeezed,
        shuffled,
        in_place,
        heads,
        volume,
        signal,
    )
} | {"tied_head": tied_head}
