"""The article's example: a ResNet-18 loses half of its parameters by sensitivity pruning; accuracy before and after recovery.

    python -m benchmarks.resnet18_sensitivity         about 40 minutes on one core; a killed run goes on where it stopped

A CIFAR ResNet-18 of quarter width is trained once (kept under runs/bench), then pruned by sensitivity: single weights become zero
by |w g|, g the gradient of the output along a random direction, or whole channels go by |w g|, g that of the loss, until as many
parameters are gone; each is recovered by one epoch of distillation.
Top-1 is over the 10,000 official test images, of the exported file.
"""

import dataclasses
import pathlib
from typing import Any

import torch
from torch import nn

import paredown
from benchmarks.cifar import exported_scores
from benchmarks.record import row, write
from examples.cifar10_resnet20 import task as cifar_task
from examples.resnet18_sensitivity import ResNet18, parameters
from paredown.measure.quality import quality

GONE = (0.5, 0.7, 0.3, 0.9)  # fractions of the parameters, the one that is asked for first
_FOLDER = pathlib.Path("runs/bench")
_TRAINING = paredown.Distill(hard_weight=1.0, training=paredown.Training(effort="10 epochs", learning_rate=0.1))
_RECOVERY = paredown.Distill(training=paredown.Training(effort="1 epochs", learning_rate=0.05))
_MACS_STEP = 0.05


def trained() -> paredown.Task:
    """CIFAR-10 with a ResNet-18 of width 16, trained on its training images."""
    torch.manual_seed(0)
    task = dataclasses.replace(cifar_task(), model=ResNet18(16).eval(), name="ResNet-18 of quarter width on CIFAR-10")
    return dataclasses.replace(task, model=_kept("resnet18", task.model, lambda: paredown.distill(task, _TRAINING)))


def single_weights(task: paredown.Task, gone: float) -> nn.Module:
    return paredown.sparsify(task, paredown.Sparsify(ratio=gone, method="sensitivity"))


def channels(task: paredown.Task, gone: float) -> nn.Module:
    """The least cut in MACs, in steps of a twentieth, that takes as many parameters."""
    ratio = 0.0
    while True:
        ratio += _MACS_STEP
        config = paredown.Prune(ratio=ratio, importance="taylor_loss", widths=paredown.Widths(round_to=4, floor=0.05))
        pruned = paredown.prune(task, config)
        if parameters(pruned) <= (1 - gone) * parameters(task.model):
            return pruned


def main() -> None:
    task = trained()
    rows = [row("before", quality(exported_scores(task, task.model), 0.95), parameters=parameters(task.model))]
    for gone in GONE:
        for name, method in (("single weights", single_weights), ("channels", channels)):
            cut = _kept(f"resnet18 {name} {gone}", task.model, lambda method=method, gone=gone: method(task, gone))
            recovered = _kept(
                f"resnet18 {name} {gone} recovered", task.model, lambda cut=cut: paredown.distill(task, _RECOVERY, model=cut)
            )
            for when, model in (("before recovery", cut), ("after 1 epoch", recovered)):
                found = quality(exported_scores(task, model), 0.95)
                rows.append(row(f"{name}, {when}", found, gone=gone, parameters=_nonzero(model)))
            print(write("resnet18_sensitivity.csv", sorted(rows, key=lambda each: (each["case"], each.get("gone", 0)))))


def _nonzero(model: nn.Module) -> int:
    return sum(int((p != 0).sum()) for p in model.parameters())


def _kept(name: str, fresh: nn.Module, make: Any) -> nn.Module:
    """What `make` gives, from runs/bench where it was made before."""
    folder = _FOLDER / name.replace(" ", "-")
    if not folder.exists():
        paredown.save_checkpoint(make(), folder)
    return paredown.load_checkpoint(folder, fresh)


if __name__ == "__main__":
    main()
