"""Channel attention, step by step: a CIFAR ResNet-18 of quarter width loses half of its MACs.

    python examples/resnet18_channel_attention.py

A gate is put on every set of channels that live or die together. Gates and weights are trained together, and gates close, those
that the loss can best do without first, until half of the MACs are left. They are folded into the weights, the closed channels
are removed, and distillation from the original recovers the accuracy.
Runs a few minutes on two cores, on CIFAR-10 from ../shared/data, or on generated patterns where that is absent.
"""

import importlib.util
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from paredown.core.effort import Effort
from paredown.core.steps import ChannelAttention, Distill, Training
from paredown.graph.groups import Groups, dependency_groups
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs, count_parameters
from paredown.pruning.attention import channel_attention
from paredown.pruning.closing import Goal
from paredown.pruning.select import select
from paredown.train.loop import fit_

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "load.py"
Batches = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Inputs (batch, 3, 32, 32). width 64 is the full net; a quarter of it is 16."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(
                Block(widths[i if k == 0 else i + 1], widths[i + 1], 2 if k == 0 and i > 0 else 1)
                for i in range(4)
                for k in range(2)
            )
        )
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))
        return result


def cifar(split: str, samples: int) -> Batches:
    spec = importlib.util.spec_from_file_location("shared_data", DATA)
    assert spec is not None and spec.loader is not None
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    images, labels, _ = load.cifar10(split, samples)
    return list(zip(load.normalize(images).split(100), torch.as_tensor(labels).split(100), strict=True))


def patterns(samples: int, seed: int) -> Batches:
    """Ten fixed images in noise."""
    images = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (samples,), generator=draw)
    noisy = images[labels] + 3.0 * torch.randn(samples, 3, 32, 32, generator=draw)
    return list(zip(noisy.split(100), labels.split(100), strict=True))


def make_task(samples: int, epochs: int) -> paredown.Task:
    """A trained ResNet-18 of quarter width with its data."""
    there = DATA.exists()
    train = cifar("train", samples) if there else patterns(samples, 1)
    validation = cifar("validation", samples // 4) if there else patterns(samples // 4, 2)
    torch.manual_seed(0)
    model = ResNet18()

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    fit_(model, train, loss, Training(effort=Effort(epochs, "epochs"), learning_rate=0.1))
    return paredown.Task(model=model, example_inputs=(train[0][0][:2],), train=train, validation=validation)


def accuracy(model: nn.Module, task: paredown.Task) -> float:
    with torch.no_grad():
        return float(np.mean([float((model(x).argmax(1) == y).float().mean()) for x, y in task.validation]))


def describe(name: str, model: nn.Module, task: paredown.Task) -> None:
    macs, parameters = count_macs(model, task.inputs) / 1e6, count_parameters(model) / 1e3
    print(f"{name:28} {accuracy(model, task):6.1%} of the validation images, {macs:5.1f} M MACs, {parameters:5.0f} k parameters")


def half_of(groups: Groups) -> Goal:
    """The gates that stay open are the most open ones of all, as many as half of the MACs allow; each group keeps one."""
    goal, counts = groups.macs(groups.all_kept()) / 2, [range(1, group.size + 1) for group in groups.groups]
    return Goal(0.5, lambda _model, gates: select(gates, groups.macs, goal, counts))


def main(samples: int = 5000, epochs: int = 4) -> None:
    task = make_task(samples, epochs)
    describe("trained", task.model, task)

    print("\n1. a gate on every dependency group; while the weights of a copy train, gates close until half of the MACs are left")
    groups = dependency_groups(task.model, task.inputs)
    config = ChannelAttention(gate="static", training=Training(effort=Effort(1, "epochs"), learning_rate=0.05))
    attended = channel_attention(task.model, task, groups, config, goal=half_of(groups))
    assert attended.keep is not None  # there was a goal
    for group, gates, keep in zip(groups.groups, attended.scores, attended.keep, strict=True):
        print(f"   {group.name:24} {group.size:4} channels, gates {gates.min():.2f} to {gates.max():.2f}, {keep.sum():4} open")

    print("\n2. the gates are folded into the weights, and cost nothing from here on")
    print(f"   loss with gates {attended.before:.4f}, folded {attended.after:.4f}")
    describe("gated and folded", attended.model, task)

    print("\n3. the channels whose gates are closed are removed: they are 0 by now, so nothing is lost by it")
    pruned = cut(attended.model, groups.manifest(attended.keep))
    describe("pruned", pruned, task)

    print("\n4. distillation from the original")
    student = paredown.distill(task, Distill(training=Training(effort=Effort(epochs, "epochs"))), model=pruned)
    describe("recovered", student, task)
    print("\nIn one step: paredown.prune(task, Prune(ratio=0.5, importance=ChannelAttention()))")


if __name__ == "__main__":
    main()
