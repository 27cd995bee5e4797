"""Code and settings as text: equal for what is the same, another for what was changed."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paredown.task.described import described, described_model


def above(output: Tensor, target: Tensor, threshold: float) -> Tensor:
    return (output > threshold) == target


def closing(threshold: float) -> Callable[..., Tensor]:
    return lambda output, target: above(output, target, threshold)


def defaulting(threshold: float) -> Callable[..., Tensor]:
    return lambda output, target, limit=threshold: above(output, target, limit)


FUNCTIONS: dict[str, Callable[[int], Any]] = {
    "value closed over": closing,
    "default of an argument": defaulting,
    "argument of a partial": lambda n: functools.partial(above, threshold=n),
    "option of a loss": lambda n: nn.CrossEntropyLoss(label_smoothing=n / 10),
    "weights in a loss": lambda n: nn.CrossEntropyLoss(weight=torch.full((3,), float(n))),
    "function closed over": lambda n: functools.partial(map, closing(n)),
}


@pytest.mark.parametrize("made", FUNCTIONS.values(), ids=FUNCTIONS)
def test_function_is_told_from_one_that_holds_another_value(made: Callable[[int], Any]) -> None:
    assert described(made(1)) == described(made(1))
    assert described(made(1)) != described(made(2))


class Scaled(nn.Module):
    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("shift", torch.tensor([shift]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


def with_forward(forward: Callable[..., Tensor]) -> nn.Module:
    """Of a class of one and the same name."""
    model: nn.Module = type("Net", (Scaled,), {"forward": forward})()
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "code of forward": (lambda: with_forward(lambda _, x: x.relu()), lambda: with_forward(lambda _, x: x.tanh())),
    "number that a module keeps": (lambda: Scaled(1), lambda: Scaled(2)),
    "buffer that is not saved": (lambda: Scaled(shift=1), lambda: Scaled(shift=2)),
    "option of torch's own module": (lambda: nn.Sequential(nn.GELU()), lambda: nn.Sequential(nn.GELU("tanh"))),
}


@pytest.mark.parametrize(("one", "other"), MODELS.values(), ids=MODELS)
def test_model_is_told_from_one_of_the_same_weights_that_computes_something_else(
    one: Callable[[], nn.Module], other: Callable[[], nn.Module]
) -> None:
    assert described_model(one().eval()) == described_model(one().train())
    assert described_model(one()) != described_model(other())


def test_sets_have_one_order() -> None:
    assert described(frozenset({"b", "c", "a"})) == "{'a', 'b', 'c'}"


def test_what_holds_itself_comes_to_an_end() -> None:
    knot: list[Any] = []
    knot.append(knot)
    assert described(functools.partial(closing(1), knot))
