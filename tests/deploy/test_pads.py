"""Padding between quantizers becomes the convolution's own."""

import pathlib

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paredown
from paredown.deploy.capabilities import executed_operators

SIDES = {"one side": (0, 1, 0, 1), "all around": (1, 1, 2, 2), "cut off": (0, -1, 0, 1)}


class Padded(nn.Module):
    """As TensorFlow pads: a convolution of stride 2 on a tensor that grew at its ends. value: what it is padded with."""

    def __init__(self, sides: tuple[int, ...], value: float = 0.0, *, also_read: bool = False) -> None:
        super().__init__()
        self.sides, self.value, self.also_read = sides, value, also_read
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=(0, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.first(x).relu(), self.sides, value=self.value)
        result = self.second(padded).relu().mean((2, 3))
        return self.head(result + padded.mean((2, 3)) if self.also_read else result)


def file_of(model: nn.Module, runtime: str, folder: pathlib.Path) -> tuple[onnx.ModelProto, pathlib.Path, float]:
    """The int8 file, where it is, and how far it is from the simulation, relative."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 9, 9)
    batches = [(x, torch.zeros(8, dtype=torch.int64))]
    task = paredown.Task(model.eval(), (x[:2],), batches, batches)
    quantized = paredown.quantize(task, paredown.Quantize(), target=runtime)
    path = folder / "m.onnx"
    paredown.export(quantized, task, target=runtime, path=path)
    with torch.no_grad():
        wanted = quantized(x).numpy()
    difference = np.abs(paredown.load(path, runtime)(x.numpy()) - wanted).max() / np.abs(wanted).max()
    return onnx.load(path), path, float(difference)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("sides", ["one side", "all around"])
def test_zeros_between_two_quantizers_are_the_convolutions_padding(sides: str, runtime: str, tmp_path: pathlib.Path) -> None:
    file, path, difference = file_of(Padded(SIDES[sides]), runtime, tmp_path)
    assert difference < 0.01
    assert not [node for node in file.graph.node if node.op_type == "Pad"]
    left, right, top, bottom = SIDES[sides]
    convolution = [node for node in file.graph.node if node.op_type == "Conv"][-1]
    (pads,) = (list(entry.ints) for entry in convolution.attribute if entry.name == "pads")
    assert pads == [top, left + 1, bottom, right + 1]
    if runtime == "onnxruntime":
        assert not executed_operators(str(path)).floating.get("Conv", 0)


@pytest.mark.parametrize(
    "model",
    [Padded(SIDES["cut off"]), Padded(SIDES["one side"], 1.0), Padded(SIDES["one side"], also_read=True)],
    ids=["cut off", "ones", "read elsewhere"],
)
def test_any_other_padding_stays(model: nn.Module, tmp_path: pathlib.Path) -> None:
    file, _, difference = file_of(model, "onnxruntime", tmp_path)
    assert difference < 0.01
    assert [node for node in file.graph.node if node.op_type == "Pad"]
