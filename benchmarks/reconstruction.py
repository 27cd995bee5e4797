"""Layers of a pruned model solved for its original's outputs (`Distill(reconstruct=True)`), against recalibrated batch norms.

    python -m benchmarks.reconstruction      about 8 minutes on two cores

ResNet-20 at half and ResNet-56 at a quarter of their MACs, one seed: without training, and ResNet-20 after an epoch of
distillation too. Top-1 over the 5,000 validation images, since it is a choice of the default that this is for.
"""

import copy
from typing import Any

from torch import nn

import paredown
from benchmarks.record import row, write
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.effort import Effort
from paredown.distillation.reconstruct import reconstruct_
from paredown.measure.quality import quality, score
from paredown.task.batches import call, evaluating
from paredown.train.batchnorm import recalibrate_


def untrained(task: paredown.Task, pruned: nn.Module, case: str) -> list[dict[str, Any]]:
    recalibrated, solved = copy.deepcopy(pruned), copy.deepcopy(pruned)
    recalibrate_(recalibrated, task.train)
    reconstruct_(solved, task.model, task.train)
    return [_row(task, recalibrated, f"{case}, recalibrated"), _row(task, solved, f"{case}, reconstructed")]


def trained(task: paredown.Task, pruned: nn.Module, case: str) -> list[dict[str, Any]]:
    training = paredown.Training(effort=Effort(1, "epochs"), learning_rate=0.05)
    rows = []
    for name in ("recalibrated", "reconstructed"):
        config = paredown.Distill(training=training, reconstruct=name == "reconstructed")
        rows.append(_row(task, paredown.distill(task, config, model=pruned), f"{case}, {name}, 1 epoch"))
    return rows


def _row(task: paredown.Task, model: nn.Module, case: str) -> dict[str, Any]:
    with evaluating(model):
        return row(case, quality(score(lambda inputs: call(model, inputs), task, "validation"), 0.95))


def main() -> None:
    rows: list[dict[str, Any]] = []
    for depth, kept in ((20, 0.5), (56, 0.25)):
        task = cifar_task(depth)
        pruned = paredown.prune(task, paredown.Prune(ratio=1 - kept, widths=paredown.Widths(round_to=4)))
        case = f"ResNet-{depth} at {kept}x MACs"
        rows += untrained(task, pruned, case)
        if depth == 20:
            rows += trained(task, pruned, case)
        print(write("reconstruction.csv", rows))


if __name__ == "__main__":
    main()
