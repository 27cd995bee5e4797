"""A file as a function of the task's batches."""

import copy
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Target, Task
from paredown.core.errors import BatchError
from paredown.pipeline.evaluate import score_file

Pair = namedtuple("Pair", ["a", "b"])


class Difference(nn.Module):
    """Tells its inputs apart."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(a) - 2 * self.head(b)


def task(order: str) -> Task:
    torch.manual_seed(0)
    model = Difference()
    a, b = torch.randn(2, 60, 4)
    with torch.no_grad():
        target = model(a, b).argmax(1)
    inputs = {"a": a, "b": b}
    batch = ({name: inputs[name] for name in order}, target)
    return Task(model, {"a": a[:2], "b": b[:2]}, train=[batch], validation=[batch])


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_named_inputs_reach_the_file_by_their_names(tmp_path: Path, order: str) -> None:
    mine, file = task(order), tmp_path / "model.onnx"
    paredown.export(mine.model, mine, path=file)
    assert score_file(mine, file, Target(), "validation").value == 1.0


def test_inputs_that_the_file_does_not_have_are_refused(tmp_path: Path) -> None:
    class Lenient(Difference):
        def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
            return super().forward(a, b)

    plain, file = task("ab"), tmp_path / "model.onnx"
    model = Lenient()
    model.load_state_dict(copy.deepcopy(plain.model.state_dict()))
    inputs, target = next(iter(plain.validation))
    batch = ({**inputs, "c": inputs["a"]}, target)
    lenient = Task(model, plain.example_inputs, train=[batch], validation=[batch])
    paredown.export(model, lenient, path=file)
    with pytest.raises(BatchError, match="got a, b, c; put every name"):
        score_file(lenient, file, Target(), "validation")


def test_named_tuples_are_inputs_too(tmp_path: Path) -> None:
    plain, file = task("ab"), tmp_path / "model.onnx"
    inputs, target = next(iter(plain.validation))
    batch = (Pair(inputs["a"], inputs["b"]), target)
    named = Task(plain.model, (inputs["a"][:2], inputs["b"][:2]), train=[batch], validation=[batch])
    paredown.export(plain.model, named, path=file)
    assert score_file(named, file, Target(), "validation").value == 1.0
