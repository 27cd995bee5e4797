"""Channel attention against L1 and random importance: ResNet-20 on CIFAR-10 at half of its MACs, after one epoch of recovery.

    python -m benchmarks.attention           three seeds of five cases; a killed run goes on where it stopped
    python -m benchmarks.attention smoke     a few steps of every case, to see that it runs; writes nothing
    python -m benchmarks.attention latency   widths chosen by measured latency against widths ordered by MACs, ResNet-20 and -56;
                                             about 40 minutes on a quiet machine

The rows "widths by both" of 2026-11-30 were chosen by the divergence of soft labels; since then by the distance of the outputs.
Learning the gates takes an epoch in which the weights train as well, so L1 is shown with an epoch more of recovery too.
"""

import pathlib
import sys
import tempfile
from typing import Any

import paredown
from benchmarks.cifar import exported_scores, official_test, seeds
from benchmarks.record import row, write
from examples.cifar10_resnet20 import task as cifar_task
from paredown.core.effort import Effort
from paredown.core.steps import ChannelAttention, Distill, Prune, Training, Widths
from paredown.core.target import Target
from paredown.measure.cost import count_macs
from paredown.measure.quality import quality
from paredown.pipeline.evaluate import compare_latency

_WIDTHS = Widths(round_to=4)  # no width of this net exceeds 64
_SMOKE = Effort(2, "steps")


def recipes(*, smoke: bool = False) -> dict[str, paredown.Recipe]:
    """The cases, by name: the same goal, widths and recovery; only the importance differs."""
    gates = Training(effort=_SMOKE if smoke else Effort(1, "epochs"), learning_rate=0.05)

    def recipe(importance: Any, epochs: int = 1) -> paredown.Recipe:
        training = Training(effort=_SMOKE if smoke else Effort(epochs, "epochs"), learning_rate=0.05)
        return paredown.Recipe((Prune(ratio=0.5, importance=importance, widths=_WIDTHS), Distill(training=training)))

    return {
        "static gates": recipe(ChannelAttention(training=gates)),
        "l1": recipe("l1"),
        "random": recipe("random"),
        "l1, one epoch more": recipe("l1", epochs=2),
        "squeeze-excite gates": recipe(ChannelAttention(gate="squeeze_excite", training=gates)),
    }


def importances(task: paredown.Task) -> list[dict[str, Any]]:
    """Top-1 on the official test images after recovery."""
    rows: list[dict[str, Any]] = []
    for name, recipe in recipes().items():
        rows += seeds(task, name, recipe)
        write("attention.csv", rows)
    return rows


def latency(task: paredown.Task, batch: int, goal: str = "0.6x") -> list[dict[str, Any]]:
    """At one goal of measured latency: widths ordered by MACs, chosen exactly over a table, and the better of both."""
    target = Target(batch=batch)
    rows: list[dict[str, Any]] = []
    for by in ("macs", "table", "both"):
        model = paredown.prune(task, Prune(latency=goal, latency_by=by, widths=_WIDTHS), target=target)
        student = paredown.distill(task, Distill(training=Training(effort="1 epochs", learning_rate=0.05)), model=model)
        macs = round(count_macs(student, task.inputs) / count_macs(task.model, task.inputs), 4)
        more = {"model": task.name, "goal": goal, "macs_ratio": macs}
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder) / f"{kind}.onnx" for kind in ("whole", "pruned")]
            for each, file in zip((task.model, student), files, strict=True):
                paredown.export(each, task, target=target, path=file)
            rows.append(row(f"widths by {by}", compare_latency(task, *files, target, pairs=100).ratio, **more))
            rows.append(row(f"widths by {by}", quality(official_test(task, files[1], target), 0.95), **more))
    return rows


def main(which: str = "all") -> None:
    if which == "smoke":
        task = cifar_task(train_limit=1000)
        for name, recipe in recipes(smoke=True).items():
            print(row(name, quality(exported_scores(task, paredown.apply(task, recipe)), 0.95)))
    if which == "all":
        print(write("attention.csv", importances(cifar_task())))
    if which == "latency":
        rows: list[dict[str, Any]] = []
        for depth, batch in ((20, 64), (56, 16)):
            rows += latency(cifar_task(depth), batch)
            print(write("latency_aware.csv", rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
