"""Tracing: a dynamic batch whatever the form of the inputs, the model's modes kept, and errors that name the user's line."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from paredown.core.errors import TraceError
from paredown.graph.trace import Dynamic, module_path, source_line, trace

X = torch.randn(3, 4)


class Stacked(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return parts[0] + parts[1]


class Named(nn.Module):
    def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
        return x + rest["y"]


class Optional(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return x if y is None else x + y


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the error names
            return x
        return -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(3, 2, 2)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Stacked(), (X, X)),
        (Named(), {"x": X, "y": X}),
        (Optional(), {"x": X, "y": X}),
        (Optional(), (X, None, X)),
        (nn.ReLU(), X),
    ],
)
def test_batch_is_dynamic_whatever_the_form_of_the_inputs(model: nn.Module, inputs: object) -> None:
    program = trace(model, inputs)
    sizes = [
        node.meta["val"].shape[0] for node in program.graph.nodes if node.op == "placeholder" and node.meta.get("val") is not None
    ]
    assert sizes and all(isinstance(size, torch.SymInt) for size in sizes if size is not None)


def test_modes_of_all_modules_are_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    model[1].eval()
    trace(model, (X,))
    assert model.training and not model[1].training


def test_nothing_but_the_error_is_said_where_a_model_cannot_be_followed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError):
        trace(Branches(), (X,))
    assert capfd.readouterr() == ("", "")


def test_error_names_the_users_line() -> None:
    with pytest.raises(TraceError, match=r"test_trace.py:\d+, in forward") as caught:
        trace(Branches(), (X,))
    assert "torch.where" in caught.value.remedy


def test_a_literal_batch_size_is_an_error_with_its_remedy() -> None:
    with pytest.raises(TraceError) as caught:
        trace(FixedBatch(), (X,))
    assert "x.shape[0]" in caught.value.remedy


class Positions(nn.Module):
    """A table of positions, as BERT has it: no sequence may be longer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]]


class Relative(nn.Module):
    """A table of relative positions for nothing but 9 of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(9, 9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.table + x @ x.transpose(1, 2), -1) @ x


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy())


@pytest.mark.parametrize(
    ("model", "inputs", "dynamic", "message"),
    [
        (FixedBatch(), X, None, r"got batch can be nothing but 3; .*x\.shape\[0\]"),
        (Relative(), torch.randn(2, 9, 4), {"x": {1: "T"}}, r"got T can be nothing but 9; take it out of dynamic"),
        (Numpy(), X, None, r"test_trace.py:\d+, in forward: .*; compute with torch"),
        (nn.Linear(5, 5), X, None, r"take the example inputs, got RuntimeError: mat1 .*; pass what its forward takes"),
    ],
    ids=["batch", "dynamic", "numpy", "inputs"],
)
def test_each_cause_has_its_own_remedy(model: nn.Module, inputs: Tensor, dynamic: Dynamic | None, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(model, inputs, dynamic)


def test_a_dynamic_length_is_limited_where_the_model_limits_it() -> None:
    model = Positions()
    program = trace(model, torch.randn(2, 5, 4), {"x": {1: "length"}})
    for length in (3, 16):
        x = torch.randn(3, length, 4)
        assert torch.equal(program.module()(x), model(x))
    with pytest.raises(Exception, match="16"):
        program.module()(torch.randn(3, 17, 4))


def test_nodes_know_their_module_and_the_users_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    (node,) = [node for node in trace(Net(), (X,)).graph.nodes if node.op == "call_function"]
    assert module_path(node) == "body.0"
    assert source_line(node).startswith("test_trace.py:") and source_line(node).endswith("in forward")


@dataclasses.dataclass
class _Answer:
    logits: Tensor


class _Answering(nn.Module):
    def forward(self, x: Tensor) -> _Answer:
        return _Answer(x + 1)


def test_a_dataclass_as_output_is_refused_with_its_own_remedy() -> None:
    with pytest.raises(TraceError, match=r"tuple or a dict, or call torch\.export\.register_dataclass\(_Answer\)"):
        trace(_Answering(), torch.randn(2, 3))
