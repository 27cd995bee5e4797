"""The whole flow of paredown in one page, without paredown: prune, distill, quantize, export, measure, gate.

Run it: python docs/tiny.py. Every function here stands for a package there; the names are the same. What is left out is
what makes it a tool: any model instead of this one, exact intervals, parity, resume, the report.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


# task: the user's model and data
class Net(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3, 1, 1), nn.Conv2d(width, 64, 3, 2, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(x).relu()).relu().mean((2, 3)))


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    digits = load_digits()
    x, y = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return x[order[:1000]], y[order[:1000]], x[order[1000:]], y[order[1000:]]


# train: one loop for all that trains
def fit_(model: nn.Module, x: Tensor, loss: Callable[[Tensor, Tensor], Tensor], epochs: int, rate: float = 1e-2) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            loss(model(x[index]), index).backward()
            optimizer.step()
    return model


# graph: conv1's outputs and conv2's inputs live or die together; here by hand, there derived from the exported graph
def cut(model: Net, kept: Tensor) -> Net:
    small = Net(len(kept))
    state = dict(model.state_dict())
    state["conv1.weight"], state["conv1.bias"] = state["conv1.weight"][kept], state["conv1.bias"][kept]
    state["conv2.weight"] = state["conv2.weight"][:, kept]
    small.load_state_dict(state)
    return small


def masked(model: Net, kept: Tensor) -> Net:
    copied = copy.deepcopy(model)
    dead = torch.ones(model.conv1.out_channels, dtype=torch.bool).index_fill(0, kept, value=False)
    copied.conv2.weight.data[:, dead] = 0  # a removed index is one that no consumer reads
    return copied


# pruning: first-order Taylor importance of each channel, summed over the group
def prune(model: Net, x: Tensor, y: Tensor, ratio: float) -> Net:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    salience = [(p.grad * p.detach()) for p in (model.conv1.weight, model.conv2.weight) if p.grad is not None]
    scores = (salience[0].sum((1, 2, 3)) + salience[1].sum((0, 2, 3))).abs()
    kept = scores.topk(round(len(scores) * (1 - ratio))).indices.sort().values
    small = cut(model, kept)
    torch.testing.assert_close(small(x), masked(model, kept)(x), rtol=1e-4, atol=1e-4)
    return small


# distillation: the original's soft labels
def distill(student: Net, teacher: Net, x: Tensor, temperature: float = 4.0) -> Net:
    with torch.no_grad():
        soft = F.softmax(teacher(x) / temperature, 1)

    def loss(output: Tensor, index: Tensor) -> Tensor:
        return temperature**2 * F.kl_div(F.log_softmax(output / temperature, 1), soft[index], reduction="batchmean")

    fit_(student, x, loss, epochs=20)
    return student


# deploy: a file, and the runtime that it ships to; quantization: int8 weights behind DequantizeLinear
def export(model: nn.Module, x: Tensor, path: Path) -> Path:
    batch = torch.export.Dim("batch")
    torch.onnx.export(model.eval(), (x[:2],), path, dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False)
    return path


def quantize(source: Path, path: Path) -> Path:
    model = onnx.load(source)
    for tensor in [t for t in model.graph.initializer if len(t.dims) == 4]:
        weight = onnx.numpy_helper.to_array(tensor)
        scale = np.maximum(np.abs(weight).reshape(len(weight), -1).max(1) / 127, 1e-12).astype(np.float32)
        grid = np.round(weight / scale[:, None, None, None]).astype(np.int8)
        name, parts = tensor.name, (f"{tensor.name}.int8", f"{tensor.name}.scale")
        model.graph.initializer.remove(tensor)
        model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for a, n in zip((grid, scale), parts, strict=True))
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", list(parts), [name], axis=0))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


# measure: what the file costs and is worth, in its runtime
def load(path: Path) -> Callable[[Tensor], np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    return lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def latency_ratio(a: Path, b: Path, x: Tensor) -> float:
    """b / a, paired and interleaved: a machine that slows down slows both."""
    runs = load(a), load(b)
    seconds = [[_seconds(run, x) for run in runs] for _ in range(60)]
    return statistics.median(after / before for before, after in seconds[10:])


def _seconds(run: Callable[[Tensor], np.ndarray], x: Tensor) -> float:
    began = time.perf_counter()
    run(x)
    return time.perf_counter() - began


# pipeline: each stage is judged on its file
def main() -> None:
    torch.manual_seed(0)
    x, y, held_x, held_y = data()
    net = Net()
    fit_(net, x, lambda output, index: F.cross_entropy(output, y[index]), epochs=30)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = export(net, held_x, folder / "baseline.onnx")
        small = distill(prune(net, x, y, ratio=0.4), net, x)
        pruned = export(small, held_x, folder / "pruned.onnx")
        stages = {"prune + distill": pruned, "quantize": quantize(pruned, folder / "int8.onnx")}
        correct = (load(kept)(held_x).argmax(1) == held_y.numpy()).mean()
        print(f"baseline: top-1 {correct:.3f}, {kept.stat().st_size:,} bytes")
        for stage, file in stages.items():
            drop = correct - (load(file)(held_x).argmax(1) == held_y.numpy()).mean()
            size = file.stat().st_size / kept.stat().st_size
            verdict = "kept" if drop <= 0.02 and size < 1 else "rolled back"
            print(f"{stage}: drop {drop:+.3f}, {size:.2f}x bytes, {latency_ratio(kept, file, held_x):.2f}x latency: {verdict}")
            kept = file if verdict == "kept" else kept


if __name__ == "__main__":
    main()
