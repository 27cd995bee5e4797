"""Sensitivity pruning step by step: gradient of every parameter -> threshold -> prune -> fine-tune.

    python examples/resnet18_sensitivity.py            a few minutes on two cores

A CIFAR ResNet-18 of quarter width is trained first, on CIFAR-10 from ../shared/data, or on generated patterns where that is
absent. Then two ways of pruning by sensitivity: single weights below a threshold become zero (shapes stay), and whole channels
are removed (the model gets smaller). Last, the same on torchvision's full ResNet-18, with random weights, and its export.
"""

import importlib.util
import itertools
import pathlib
import sys
import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paredown

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "load.py"
IMAGES, TRAINING, RECOVERY = 15_000, "3 epochs", "1 epochs"
BELOW = paredown.Sparsify(threshold=0.5, method="sensitivity_loss")  # 1 is what a weight scores on the average
Batches = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """For 32x32 images; width 64 is the usual one, 16 a quarter of it."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(Block(before, after, 1 if i == 0 else 2), Block(after, after, 1))
                for i, (before, after) in enumerate(itertools.pairwise(widths))
            )
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.head(x.mean((2, 3)))


def data(images: int, share: int = 10) -> tuple[Batches, Batches]:
    """Training batches, and validation batches of a `share`-th as many images, at least 500."""
    counts = (images, max(images // share, 500))
    return cifar(counts) if DATA.exists() else patterns(counts)


def cifar(counts: tuple[int, int]) -> tuple[Batches, Batches]:
    """From the data beside the project."""
    spec = importlib.util.spec_from_file_location("shared_data", DATA)
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    found = []
    for split, count in zip(("train", "validation"), counts, strict=True):
        pixels, labels, _ = load.cifar10(split, count)
        found.append(list(zip(load.normalize(pixels).split(128), torch.as_tensor(labels).split(128), strict=True)))
    return found[0], found[1]


def patterns(counts: tuple[int, int]) -> tuple[Batches, Batches]:
    """Ten fixed pictures in noise, where CIFAR-10 is absent."""
    draw = torch.Generator().manual_seed(0)
    pictures = F.interpolate(torch.randn(10, 3, 8, 8, generator=draw), 32)
    found = []
    for count in counts:
        labels = torch.randint(0, 10, (count,), generator=draw)
        pixels = pictures[labels] + 2.5 * torch.randn(count, 3, 32, 32, generator=draw)
        found.append(list(zip(pixels.split(128), labels.split(128), strict=True)))
    return found[0], found[1]


def accuracy(model: nn.Module, batches: Batches) -> float:
    with torch.no_grad():
        right = [model.eval()(x).argmax(1) == y for x, y in batches]
    return float(torch.cat(right).float().mean())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def zeros(model: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)


def training(effort: str, rate: float) -> paredown.Distill:
    """Plain training on the labels: hard_weight=1 asks no teacher."""
    return paredown.Distill(hard_weight=1.0, training=paredown.Training(effort=paredown.Effort.parse(effort), learning_rate=rate))


def gradients(task: paredown.Task, batches: int = 10) -> dict[str, Tensor]:
    """Step 1: the mean |dL/dw| of every parameter."""
    model = task.model
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in list(task.train)[:batches]:
        loss = F.cross_entropy(model(x), y)
        for (name, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total[name] += g.abs() / batches
    return total


def show(what: str, model: nn.Module, task: paredown.Task) -> None:
    counts = f"{parameters(model):9,} parameters, {zeros(model):9,} zeros"
    print(f"  {what:32s} {100 * accuracy(model, task.validation):5.1f} %   {counts}")


def single_weights(task: paredown.Task) -> None:
    """Steps 2 to 4 on single weights: |w g| below half of its mean becomes zero, then fine-tuning, which keeps the zeros."""
    print("single weights below a threshold:")
    show("before", task.model, task)
    sparse = paredown.sparsify(task, BELOW)
    show("after pruning", sparse, task)
    show("after fine-tuning", paredown.distill(task, training(RECOVERY, 0.02), model=sparse), task)


def channels(task: paredown.Task) -> None:
    """Steps 2 to 4 on whole channels, until half of the parameters are gone."""
    print("whole channels, until half of the parameters are gone:")
    show("before", task.model, task)
    for ratio in (0.3, 0.4, 0.5, 0.6, 0.7):
        config = paredown.Prune(ratio=ratio, importance="taylor_loss", widths=paredown.Widths(round_to=4))
        pruned = paredown.prune(task, config)
        if parameters(pruned) <= parameters(task.model) / 2:
            break
    show(f"after pruning {100 * ratio:.0f} % of the MACs", pruned, task)
    show("after fine-tuning", paredown.distill(task, training(RECOVERY, 0.02), model=pruned), task)


def full_resnet18() -> None:
    """The same mechanics on torchvision's ResNet-18 (random weights: there is no accuracy to speak of), down to the file."""
    from torchvision.models import resnet18

    x, y = torch.randn(4, 3, 224, 224), torch.arange(4)
    task = paredown.Task(model=resnet18().eval(), example_inputs=(x,), train=[(x, y)], validation=[(x, y)], name="ResNet-18")
    sparse = paredown.sparsify(task, BELOW)
    pruned = paredown.prune(task, paredown.Prune(ratio=0.5, importance="taylor_loss"))
    print("torchvision's ResNet-18, single weights below the threshold, and half of the MACs:")
    for model in (sparse, pruned):
        with tempfile.TemporaryDirectory() as folder:
            artifact = paredown.export(model, task, path=pathlib.Path(folder) / "resnet18.onnx")
        print(f"  {parameters(model):,} parameters, {zeros(model):,} of them zero, a file of {artifact.size_bytes:,} bytes")


def main(images: int = IMAGES) -> None:
    train, validation = data(images)
    torch.manual_seed(0)
    untrained = paredown.Task(model=ResNet18(), example_inputs=(train[0][0][:2],), train=train, validation=validation)
    model = paredown.distill(untrained, training(TRAINING, 0.1))
    task = paredown.Task(model=model, example_inputs=(train[0][0][:2],), train=train, validation=validation)
    print("gradient of the loss by each parameter, its mean in the layers that have most and least:")
    means = sorted((float(g.mean()), name) for name, g in gradients(task).items() if g.dim() > 1)
    for mean, name in (*means[:3], *means[-3:]):
        print(f"  {name:32s} {mean:.2e}")
    single_weights(task)
    channels(task)
    full_resnet18()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
