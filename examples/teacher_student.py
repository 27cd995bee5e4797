"""A small student taught by a larger network of another kind: no teacher, soft labels, attention transfer, both.

    python examples/teacher_student.py            some minutes on two cores
    python examples/teacher_student.py 15000 "5 epochs" 3      images, effort of each training, seeds

The teacher is a ResNet-50 (bottlenecks, 3-4-6-3), the student a ResNet-18 (basic blocks, 2-2-2-2), both for 32x32 images and of
reduced width, on CIFAR-10 from ../shared/data, or on generated patterns where that is absent. They share neither class nor
widths nor depth: which layers are compared is proposed from a batch, and printed.
"""

import itertools
import sys

import torch
import torch.nn.functional as F
from resnet18_sensitivity import Batches, accuracy, data  # the example beside this one
from torch import Tensor, nn

import paredown
from paredown import AttentionTransfer, Distill, Training


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
    train, validation = data(images, share=5)
    torch.manual_seed(0)
    teacher = paredown.distill(task_of(resnet50(), train, validation), schemes(effort)["no teacher"])
    print(f"teacher, {sum(p.numel() for p in teacher.parameters()):,} parameters: {100 * accuracy(teacher, validation):.1f} %")
    for seed in range(seeds):
        torch.manual_seed(seed)
        student = resnet18()
        task = task_of(student, train, validation)
        if seed == 0:
            print(f"student, {sum(p.numel() for p in student.parameters()):,} parameters; pairs compared:")
            for pair in paredown.propose_pairs(teacher, student, train[0][0]):
                print(f"  {pair}")
        samples = sum(len(y) for _, y in validation)
        for name, config in schemes(effort).items():
            found = paredown.distill(task, config, teacher=teacher, seed=seed)
            print(f"  seed {seed}, {name:20s} {100 * accuracy(found, validation):5.1f} % of {samples:,}")


if __name__ == "__main__":
    given = zip((int, str, int), sys.argv[1:], strict=False)
    main(*(kind(value) for kind, value in given))
