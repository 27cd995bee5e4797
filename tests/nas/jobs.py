"""Networks and data for evaluators that build and train."""

from torch import Tensor, nn

from paredown.nas.cell201_network import build
from paredown.nas.evaluators.evaluator import Values
from paredown.nas.evaluators.training import Data
from tests.conftest import pattern_batches


def small_network(values: Values) -> nn.Module:
    return build(values, channels=4, cells=1)


def images() -> Tensor:
    return coloured()[0][0]


def coloured() -> list[tuple[Tensor, Tensor]]:
    """The patterns as images of three channels."""
    return [(x.expand(-1, 3, -1, -1).contiguous(), y) for x, y in pattern_batches(192, seed=1, batch=64)]


def data() -> Data:
    return Data(coloured(), coloured(), coloured())
