"""A small student taught by a larger network of another kind: no teacher, soft labels, attention transfer, both.

    python examples/teacher_student.py            some minutes on two cores
    python examples/teacher_student.py 15000 "5 epochs" 3      images, effort of each training, seeds

The teacher is a ResNet-50 (bottlenecks, 3-4-6-3), the student a ResNet-18 (basic blocks, 2-2-2-2), both for 32x32 images and of
reduced width, on CIFAR-10 from ../shared/data, or on generated patterns where that is absent. They share neither class nor
widths nor depth: which layers are compared is proposed from a batch, and printed.
"""

import importlib.util
import itertools
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown
from paredown import AttentionTransfer, Distill, Training

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "load.py"
Batches = list[tuple[Tensor, Tensor]]


def convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after))


class Block(nn.Module):
    """relu(branch(x) + shortcut(x)); the branch is two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        parts = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)] if bottleneck else []
        parts = parts or [(before, width, 3, stride), (width, width, 3, 1)]
        layers = [[convolution(*part), nn.ReLU()] for part in parts]
        self.branch = nn.Sequential(*itertools.chain.from_iterable(layers))[:-1]
        self.shortcut = nn.Sequential() if stride == 1 and before == after else convolution(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class ResNet(nn.Module):
    """For 32x32 images; width 64 is the usual one."""

    def __init__(self, depths: tuple[int, ...], width: int, bottleneck: bool, classes: int = 10) -> None:
        super().__init__()
        self.stem, stages, before = nn.Sequential(convolution(3, width, 3), nn.ReLU()), [], width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(Block(before, width << i, 2 if i > 0 and j == 0 else 1, bottleneck))
                before = (4 if bottleneck else 1) * (width << i)
            stages.append(nn.Sequential(*blocks))
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def resnet50(width: int = 8) -> ResNet:
    return ResNet((3, 4, 6, 3), width, bottleneck=True)


def resnet18(width: int = 8) -> ResNet:
    return ResNet((2, 2, 2, 2), width, bottleneck=False)


def cifar(images: int) -> tuple[Batches, Batches]:
    """Training and validation batches from the data beside the project."""
    spec = importlib.util.spec_from_file_location("shared_data", DATA)
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    found = []
    for split, count in (("train", images), ("validation", max(images // 5, 500))):
        pixels, labels, _ = load.cifar10(split, count)
        found.append(list(zip(load.normalize(pixels).split(128), torch.as_tensor(labels).split(128), strict=True)))
    return found[0], found[1]


def patterns(images: int) -> tuple[Batches, Batches]:
    """Ten fixed pictures in noise, where CIFAR-10 is absent."""
    draw = torch.Generator().manual_seed(0)
    pictures = F.interpolate(torch.randn(10, 3, 8, 8, generator=draw), 32)
    found = []
    for count in (images, max(images // 5, 500)):
        labels = torch.randint(0, 10, (count,), generator=draw)
        pixels = pictures[labels] + 2.5 * torch.randn(count, 3, 32, 32, generator=draw)
        found.append(list(zip(pixels.split(128), labels.split(128), strict=True)))
    return found[0], found[1]


def accuracy(model: nn.Module, batches: Batches) -> float:
    with torch.no_grad():
        right = [model.eval()(x).argmax(1) == y for x, y in batches]
    return 100 * float(torch.cat(right).float().mean())


def schemes(effort: str) -> dict[str, Distill]:
    """The four ways to train one student. Attention transfer alone stands beside the labels: hard_weight=1, no soft loss."""
    training = Training(effort=paredown.Effort.parse(effort), learning_rate=0.1)
    attention = (AttentionTransfer(),)
    return {
        "no teacher": Distill(hard_weight=1.0, training=training),
        "soft labels": Distill(hard_weight=0.1, training=training),
        "attention transfer": Distill(hard_weight=1.0, features=attention, training=training),
        "both": Distill(hard_weight=0.1, features=attention, training=training),
    }


def task_of(model: nn.Module, train: Batches, validation: Batches) -> paredown.Task:
    return paredown.Task(model=model, example_inputs=(train[0][0][:2],), train=train, validation=validation)


def main(images: int = 4_000, effort: str = "2 epochs", seeds: int = 1) -> None:
    train, validation = cifar(images) if DATA.exists() else patterns(images)
    torch.manual_seed(0)
    teacher = paredown.distill(task_of(resnet50(), train, validation), schemes(effort)["no teacher"])
    print(f"teacher, {sum(p.numel() for p in teacher.parameters()):,} parameters: {accuracy(teacher, validation):.1f} %")
    for seed in range(seeds):
        torch.manual_seed(seed)
        student = resnet18()
        task = task_of(student, train, validation)
        if seed == 0:
            print(f"student, {sum(p.numel() for p in student.parameters()):,} parameters; pairs compared:")
            for pair in paredown.propose_pairs(teacher, student, train[0][0]):
                print(f"  {pair}")
        for name, config in schemes(effort).items():
            found = paredown.distill(task, config, teacher=teacher, seed=seed)
            print(f"  seed {seed}, {name:20s} {accuracy(found, validation):5.1f} % of {sum(len(y) for _, y in validation):,}")


if __name__ == "__main__":
    given = zip((int, str, int), sys.argv[1:], strict=False)
    main(*(kind(value) for kind, value in given))
