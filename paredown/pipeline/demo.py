"""The embedded default: a small residual convnet on scikit-learn's digits, trained here, then compressed under a budget."""

from pathlib import Path

import torch
from torch import Tensor, nn

from paredown.core.budget import Budget
from paredown.core.effort import Effort
from paredown.core.errors import MissingExtraError
from paredown.core.progress import Progress, silent
from paredown.core.report import Report
from paredown.core.steps import Training
from paredown.core.target import Target
from paredown.pipeline.compress import compress
from paredown.task.batches import Batch, call
from paredown.task.task import Task
from paredown.train.loop import fit_

BUDGET = Budget(max_drop=0.02, latency="0.6x", size="0.18x")
_BATCH = 128
_SAMPLES = {"train": 747, "validation": 600, "test": 450}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; strided, with a 1x1 convolution on the shortcut, where the width changes."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        stride = 1 if c_in == c_out else 2
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """(batch, 1, 8, 8) -> (batch, 10); 111 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 48, 3, 1, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.blocks = nn.Sequential(Block(48, 48), Block(48, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(x)).mean((2, 3))
        logits: Tensor = self.head(features)
        return logits


def digits() -> dict[str, list[Batch]]:
    """Batches of the three splits; images (batch, 1, 8, 8) in [0, 1]. Raises MissingExtraError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError(
            "the demo's data comes with scikit-learn", got="no module sklearn", remedy="run: pip install 'paredown[demo]'"
        ) from None
    data, batches, start = load_digits(), dict[str, list[Batch]](), 0
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    labels = torch.as_tensor(data.target)[order]
    for name, samples in _SAMPLES.items():
        part = range(start, start + samples, _BATCH)
        ends = [min(first + _BATCH, start + samples) for first in part]
        batches[name] = [(images[a:b], labels[a:b]) for a, b in zip(part, ends, strict=True)]
        start += samples
    return batches


def digits_task(*, epochs: int = 25, progress: Progress = silent) -> Task:
    """The trained net with its data: what a user brings. Training takes about half a minute on two cores."""
    batches = digits()
    torch.manual_seed(0)
    model = DigitsNet()

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        inputs, target = batch
        return nn.functional.cross_entropy(call(net, inputs), target)

    training = Training(effort=Effort(epochs, "epochs"), learning_rate=0.1)
    fit_(model, batches["train"], loss, training, seed=0, progress=lambda _, fraction: progress("train the baseline", fraction))
    example = batches["train"][0][0]
    return Task(
        model=model.eval(),
        example_inputs=(example[:2],) if isinstance(example, Tensor) else (),
        train=batches["train"],
        validation=batches["validation"],
        test=batches["test"],
        name="digits",
    )


def run_demo(out: str | Path, *, sensitivity: bool = False, progress: Progress = silent) -> Report:
    """Trains, compresses under `BUDGET` for ONNX Runtime at batch 64, and writes the run to `out`, replacing an earlier one."""
    task = digits_task(progress=progress)
    return compress(
        task, BUDGET, target=Target(batch=64), out=out, effort=Effort(30, "epochs"), progress=progress, existing="replace",
        sensitivity=sensitivity,
    )  # fmt: skip
