"""The published ResNet-20 on CIFAR-10, from the data beside the project (../shared/data).

    paredown compress examples/cifar10_resnet20.py --max-drop 1% --latency 0.6x --size 0.4x --out runs/r20

The weights were trained on all 50,000 training images, so those serve training and calibration only; the official test
images are halved: one half for every choice, the other for the report.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor

import paredown

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "load.py"


class Augmented:
    """Training batches with random crops (4 black pixels of padding) and flips; every epoch draws anew, by seed and its number.

    images: uint8 (samples, 32, 32, 3). normalize: uint8 (batch, 32, 32, 3) -> float (batch, 3, 32, 32).
    """

    def __init__(
        self, images: Tensor, labels: Tensor, normalize: Callable[[Tensor], Tensor], batch: int = 128, seed: int = 0
    ) -> None:
        self.images = torch.nn.functional.pad(images, (0, 0, 4, 4, 4, 4))
        self.labels, self.normalize, self.batch, self.seed, self.epoch = labels, normalize, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(100_000 * self.seed + self.epoch)
        windows = self.images.unfold(1, 32, 1).unfold(2, 32, 1)  # (samples, 9, 9, 3, 32, 32), a view
        for index in torch.randperm(len(self.images), generator=draw).split(self.batch)[: len(self)]:
            top, left = torch.randint(0, 9, (2, len(index)), generator=draw)
            crops = windows[index, top, left].permute(0, 2, 3, 1)  # (batch, 32, 32, 3)
            flip = torch.rand(len(index), generator=draw) < 0.5
            crops = torch.where(flip[:, None, None, None], crops.flip(2), crops)
            yield self.normalize(crops), self.labels[index]


def data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_data", DATA)
    if spec is None or spec.loader is None or not DATA.exists():
        raise FileNotFoundError("this example reads CIFAR-10 and the weights from ../shared/data")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def task(depth: int = 20, train_limit: int | None = None, seed: int = 0) -> paredown.Task:
    load = data()

    def batches(split: str) -> list[tuple[Tensor, Tensor]]:
        images, labels, _ = load.cifar10(split)
        return list(zip(load.normalize(images).split(250), torch.as_tensor(labels).split(250), strict=True))

    images, labels, _ = load.cifar10("train", train_limit)
    validation = batches("validation")
    return paredown.Task(
        model=load.cifar_resnet(depth),
        example_inputs=(validation[0][0][:2],),
        train=Augmented(torch.as_tensor(images), torch.as_tensor(labels), load.normalize, seed=seed),
        validation=validation,
        test=batches("test"),
        name=f"ResNet-{depth} on CIFAR-10",
    )
