"""ResNet-56 on CIFAR-10, pruned to 0.45x and 0.25x of its MACs, three epochs of recovery by distillation, three seeds.

    python -m benchmarks.resnet56            both, about 90 minutes on one core; a killed run goes on where it stopped

Besides soft labels the stage ends of the teacher are compared, on the channels that were kept (hints by lineage). That, and the
learning rate, were chosen on validation images.
Torch-Pruning with the same epochs of fine-tuning (measured once on such a machine): 93.39 -> 91.82 at 0.45x, 88.52 at 0.25x.
"""

from typing import Any

import paredown
from benchmarks.cifar import seeds
from benchmarks.record import write
from examples.cifar10_resnet20 import task as cifar_task

KEPT = (0.45, 0.25)


def recipe(kept: float) -> paredown.Recipe:
    """Widths are multiples of 4, since no width of this net exceeds 64."""
    return paredown.Recipe(
        (
            paredown.Prune(ratio=1 - kept, widths=paredown.Widths(round_to=4)),
            paredown.Distill(training=paredown.Training(learning_rate=0.02), features=(paredown.Hint(),), balance=True),
        )
    )


def main() -> None:
    task = cifar_task(56)
    rows: list[dict[str, Any]] = []
    for kept in KEPT:
        rows += seeds(task, f"prune to {kept}x MACs + distill 3 epochs", recipe(kept))
        print(write("resnet56_prune.csv", rows))


if __name__ == "__main__":
    main()
