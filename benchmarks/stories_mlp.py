"""stories260K with half the width in its MLPs (172 -> 86), recovered by distillation token by token, without labels.

    python -m benchmarks.stories_mlp          three seeds of 40 minutes, after the stories are told; goes on where it stopped
    python -m benchmarks.stories_mlp 1        one seed; the others stay as the table has them
    python -m benchmarks.stories_mlp smoke    two steps on a few stories; nothing is written

Stories that the model tells, another seed for each use, stand for text that it knows (see `benchmarks/stories.py`). Perplexity of
the original, of the cut, and of the recovered student on stories that no training has seen. Asked: within 10 % of the original's.
Batch size, rate, layers solved first and hints were chosen by trainings of 90 s, on stories that choose and aren't reported.
"""

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

import paredown
from benchmarks import stories
from benchmarks.record import read, row, write
from paredown import Distill, Hint, Prune, TokenLevel, Training, Widths
from paredown.core.effort import Effort
from paredown.core.measurement import Measurement
from paredown.measure.bootstrap import mean_bounds
from paredown.measure.cost import count_macs

FOLDER = pathlib.Path("runs/bench/stories_mlp")
SEEDS = (0, 1, 2)
CONFIG = Distill(
    temperature=1.0,
    hard_weight=0,
    soft=TokenLevel(),
    features=(Hint(adapter=False),),
    reconstruct=True,
    training=Training(effort=Effort(9, "epochs"), optimizer="adamw", learning_rate=4e-3, weight_decay=0.01, clip=1.0),
)
_TRAIN, _HELD_OUT, _BATCH = 16_384, 256, 8  # stories


def cut(task: paredown.Task) -> nn.Module:
    """Half of each MLP, chosen by Taylor importance; attention and the residual stream stay."""
    layers = range(len(task.model.layers))
    kept = tuple(f"layers.{i}.{name}" for i in layers for name in "qkvo")
    half = Prune(ratio=0.2, widths=Widths(floor=0.5, ceiling=0.5, round_to=2), protect=("tok", *kept))
    pruned = paredown.prune(task, half)
    widths = {pruned.get_submodule(f"layers.{i}.w1").weight.shape[0] for i in layers}
    assert widths == {86}, widths
    return pruned


def recovered(task: paredown.Task, start: nn.Module, seed: int) -> nn.Module:
    """The student of a seed; kept, so that a killed benchmark goes on where it stopped."""
    digest = hashlib.sha256(f"{CONFIG!r} {_TRAIN} {_BATCH}".encode()).hexdigest()[:12]
    folder = FOLDER / f"student-{digest}-{seed}"
    if not folder.exists():
        student = paredown.distill(task, CONFIG, model=start, seed=seed, resume=FOLDER / f"training-{digest}-{seed}")
        paredown.save_checkpoint(student, folder)
    return paredown.load_checkpoint(folder, task.model)


def perplexity(case: str, llama: nn.Module, tokens: Tensor, **extra: Any) -> dict[str, Any]:
    """With bounds over stories, each at 95 %."""
    nats = stories.losses(llama, tokens).double().numpy()
    low, high = mean_bounds(nats, 0.95, 0)
    found = Measurement("perplexity", float(np.exp(nats.mean())), "", len(nats), float(np.exp(low)), float(np.exp(high)))
    return row(case, found, **extra)


def main(seeds: Sequence[int] = SEEDS) -> None:
    llama = stories.model()
    task = stories.task(llama, stories.told(llama, _TRAIN, 3), stories.told(llama, _HELD_OUT, 4), batch=_BATCH)
    held_out, start = stories.told(llama, _HELD_OUT, 6), cut(task)  # those of 5 were seen while the effort was chosen
    macs = round(count_macs(start, task.inputs) / count_macs(llama, task.inputs), 4)
    rows = [perplexity("original", llama, held_out, macs_ratio=1.0), perplexity("half the MLP width, untrained", start, held_out)]
    effort = str(CONFIG.training.effort)
    others = [each for each in read("stories_mlp.csv") if each["seed"] not in ("", *map(str, seeds)) and each["effort"] == effort]
    for seed in seeds:
        found = perplexity("half the MLP width, recovered", recovered(task, start, seed), held_out, seed=seed, macs_ratio=macs)
        rows.append(found | {"of_original": round(found["value"] / rows[0]["value"], 4), "effort": effort})
        print(write("stories_mlp.csv", rows + others))


def smoke() -> None:
    llama = stories.model()
    tokens = stories.sampled_rows(llama, 16, 9)
    task = stories.task(llama, tokens[:8], tokens[8:], batch=4)
    start = cut(task)
    short = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, effort=Effort(2, "steps")))
    student = paredown.distill(task, short, model=start)
    for case, each in (("original", llama), ("cut", start), ("two steps", student)):
        print(perplexity(case, each, tokens[8:]))


if __name__ == "__main__":
    smoke() if sys.argv[1:] == ["smoke"] else main([*map(int, sys.argv[1:])] or SEEDS)
