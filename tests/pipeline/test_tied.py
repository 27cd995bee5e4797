"""A table that is a head too: the file holds it once, on the head's grid, and both read it from there."""

import onnx
import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Quantize, Task
from paredown.core.target import Target
from paredown.quantization.bits import layer_bits


class Tied(nn.Module):
    """Tokens (batch, 6) of 500 -> logits (batch, 6, 500), by one table of (500, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(500, 32), nn.Linear(32, 32), nn.Linear(32, 500, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        logits: Tensor = self.head(x + torch.relu(self.inner(x)))
        return logits


@pytest.fixture(scope="module")
def tied() -> Task:
    torch.manual_seed(0)
    tokens = torch.randint(0, 500, (16, 6))
    batches = [(tokens, tokens)]
    loss = nn.CrossEntropyLoss()
    return Task(Tied().eval(), (tokens[:2],), batches, batches, loss=lambda o, t: loss(o.flatten(0, 1), t.flatten()), metric=_hit)


def _hit(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(-1) == target).float().mean(-1)


KINDS = {
    "static": Quantize(samples=8),
    "dynamic": Quantize(kind="dynamic"),
    "int4": Quantize(kind="weight_only", bits=4),
    "palette": Quantize(kind="palette"),
}


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_the_table_once_and_agrees(tied: Task, kind: str, runtime: str, tmp_path: object) -> None:
    model = paredown.quantize(tied, KINDS[kind], target=Target(runtime))  # type: ignore[arg-type]  # a parameter
    artifact = paredown.export(model, tied, target=runtime, path=f"{tmp_path}/m.onnx")  # compared with torch
    stored = onnx.load(artifact.path).graph.initializer
    large = [tensor.name for tensor in stored if 500 in tensor.dims and 32 in tensor.dims]
    assert len(large) == 1
    assert artifact.size_bytes < 0.45 * 4 * sum(p.numel() for p in tied.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_lookups_read_the_grid_of_the_head(tied: Task, kind: str) -> None:
    model = paredown.quantize(tied, KINDS[kind])
    assert not {key for key in model.quantizers if key.startswith("table")}
    rows = {row.module: row for row in layer_bits(model)}
    assert rows["table"].weight_bits == rows["head"].weight_bits == KINDS[kind].bits
    table = next(node for node in model.graph.nodes if node.target in ("table.weight", "head.weight"))
    assert [str(user.target) for user in table.users] == ["quantizers.head@0:weight"]


def test_a_head_that_stays_in_float_leaves_its_table_alone(tied: Task) -> None:
    model = paredown.quantize(tied, Quantize(kind="dynamic", protect=("head",)))
    rows = {row.module: row.weight_bits for row in layer_bits(model)}
    assert rows == {"table": 32, "inner": 8, "head": 32}
