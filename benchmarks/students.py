"""Students of other widths and depths than their teachers, on CIFAR-10, three seeds; top-1 of all 10,000 official test images.

    python -m benchmarks.students example      examples/teacher_student.py: ResNet-50-shaped teacher, ResNet-18-shaped student
    python -m benchmarks.students resnet20     the published ResNet-56 teaches ResNet-20, from scratch and from published weights
    python -m benchmarks.students              both, one seed after the other; a killed run goes on where it stopped
    python -m benchmarks.students resnet20 1   one seed; the others stay as the table has them
    python -m benchmarks.students smoke        two steps of each scheme; nothing is written

Nothing is chosen here: efforts and learning rates were fixed beforehand, so both halves of the test images are read. The
example's teacher learns from the same 15,000 images as its students, twice as long. Batches of the ResNet-20s are augmented, for
each seed differently; what the ResNet-56 gives on them is kept, so that of the schemes of a seed only the first one waits for it.
"""

import copy
import dataclasses
import functools
import hashlib
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import paredown
from benchmarks.cifar import SEEDS
from benchmarks.kept import FOLDER, mean_of, once, scored, scores_of
from benchmarks.record import read, row, write
from examples.cifar10_resnet20 import data
from examples.cifar10_resnet20 import task as cifar_task
from paredown import Cached, Distill, Training
from paredown.core.effort import Effort
from paredown.measure.quality import Scores, drop, quality

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))  # as `python examples/teacher_student.py` does
import teacher_student as example

_IMAGES, _EFFORT, _TEACHER_EFFORT = 15_000, "6 epochs", "12 epochs"
_SCRATCH, _TUNED = Effort(5, "epochs"), Effort(2, "epochs")
_HELD_AGAINST = {  # by scheme: what it is to be better than
    "soft labels": "no teacher",
    "attention transfer": "no teacher",
    "both": "no teacher",
    "from scratch, soft labels": "from scratch, no teacher",
    "from published weights, soft labels": "published weights",
}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """start: seed -> the student before its training. config: None: it is not trained."""

    name: str
    start: Callable[[int], nn.Module]
    config: Distill | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """A teacher, and the schemes by which its students learn. table: the file of the results. task: seed -> data and teacher."""

    name: str
    table: str
    task: Callable[[int], paredown.Task]
    schemes: tuple[Scheme, ...]

    def file(self, scheme: Scheme, seed: int) -> pathlib.Path:
        digest = hashlib.sha256(f"{self.name} {scheme.name} {scheme.config!r} {seed}".encode()).hexdigest()[:12]
        return FOLDER / "students" / f"{digest}.json"


def example_case(images: int = _IMAGES, effort: str = _EFFORT, teacher_effort: str = _TEACHER_EFFORT) -> Case:
    def task(_seed: int) -> paredown.Task:
        return example_task(images, teacher_effort)

    schemes = tuple(Scheme(name, fresh(example.resnet18), config) for name, config in example.schemes(effort).items())
    teacher = Scheme("the teacher", lambda seed: task(seed).model)
    return Case("ResNet-50 -> ResNet-18, reduced widths", "teacher_student.csv", task, (*schemes, teacher))


@functools.cache
def example_task(images: int, teacher_effort: str) -> paredown.Task:
    """Of the teacher, which is trained the first time."""
    load, official = data(), cifar_task(20, 128)
    pixels, labels, _ = load.cifar10("train", images)
    train = list(zip(load.normalize(pixels).split(128), torch.as_tensor(labels).split(128), strict=True))
    given = {"example_inputs": official.example_inputs, "validation": official.validation, "test": official.test, "train": train}
    folder = FOLDER / "students" / f"teacher-{images}-{teacher_effort.replace(' ', '-')}"
    if not folder.exists():
        config = example.schemes(teacher_effort)["no teacher"]
        teacher = fresh(example.resnet50)(0)
        task = paredown.Task(model=teacher, **given)
        paredown.save_checkpoint(paredown.distill(task, config, resume=folder.with_suffix(".training")), folder)
    return paredown.Task(model=paredown.load_checkpoint(folder, example.resnet50()), **given)


def resnet20_case(scratch: Effort = _SCRATCH, tuned: Effort = _TUNED, limit: int | None = None) -> Case:
    published = functools.lru_cache(maxsize=1)(lambda seed: cifar_task(56, limit, seed))
    hard, soft = (Distill(hard_weight=w, training=Training(effort=scratch, learning_rate=0.1)) for w in (1.0, 0.1))
    gentle = Distill(hard_weight=0.1, training=Training(effort=tuned, learning_rate=0.02))
    ready = data().cifar_resnet(20)
    untrained = type(ready)
    return Case(
        "ResNet-56 -> ResNet-20",
        "resnet56_to_resnet20.csv",
        published,
        (
            Scheme("published weights", lambda _: ready),
            Scheme("from scratch, soft labels", fresh(untrained), soft),
            Scheme("from published weights, soft labels", lambda _: copy.deepcopy(ready), gentle),
            Scheme("from scratch, no teacher", fresh(untrained), hard),
        ),
    )


def fresh(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Weights drawn anew for each seed."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make()

    return made


def trained(case: Case, scheme: Scheme, seed: int) -> dict[str, Any]:
    """What the student of a scheme and seed scores, on each half of the test images."""
    student, task = scheme.start(seed), case.task(seed)
    if scheme.config is not None:
        teacher = task.model if scheme.config.features else Cached(task.model, _outputs(seed))  # hidden layers aren't kept
        place = case.file(scheme, seed).with_suffix("")
        student = paredown.distill(task, scheme.config, model=student, teacher=teacher, seed=seed, resume=place)
    return {split: scored(task, student, split) for split in ("validation", "test")}


def _outputs(seed: int) -> pathlib.Path:
    return FOLDER / "students" / f"teacher-{seed}"


def done(case: Case, scheme: Scheme, seed: int) -> Scores | None:
    """Over both halves of the test images; None for what isn't trained yet."""
    file = case.file(scheme, seed)
    kept = once(file, dict) if file.exists() else None
    return None if kept is None else scores_of(paredown.top1, kept["validation"], kept["test"])


def run(case: Case, seeds: Sequence[int] = SEEDS) -> None:
    for seed in seeds:
        for scheme in case.schemes:
            once(case.file(scheme, seed), functools.partial(trained, case, scheme, seed))
            print(write(case.table, table(case)))
        shutil.rmtree(_outputs(seed), ignore_errors=True)


def table(case: Case) -> list[dict[str, Any]]:
    """Top-1 of each student that is done; what it gains on the one that it is held against, seed by seed; and the mean gains.

    Rows of seeds that aren't all done here stay as the table has them: seeds of hours may take their turns.
    """
    rows, before = [], read(case.table)
    whole = [seed for seed in SEEDS if all(done(case, scheme, seed) is not None for scheme in case.schemes)]
    for scheme in case.schemes:
        fields = {"teacher_student": case.name, "effort": "none" if scheme.config is None else str(scheme.config.training.effort)}
        earlier = {seed: [] if seed in whole else _earlier(before, scheme, seed, fields) for seed in SEEDS}
        found = [each for seed in SEEDS for each in earlier[seed] or _measured(case, scheme, seed, fields)]
        rows += found
        gains = [float(each["value"]) for each in found if each["metric"] == "gain"]
        if len(gains) == len(SEEDS):
            mean = mean_of("mean gain", gains)
            extra = {"seed": "mean", "seeds_better": sum(gain > 0 for gain in gains), **fields}
            rows.append(row(f"{scheme.name} against {_HELD_AGAINST[scheme.name]}", mean, **extra))
    return rows


def _measured(case: Case, scheme: Scheme, seed: int, fields: dict[str, str]) -> list[dict[str, Any]]:
    """Of a student that is done here, its row and that of its gain; [] of one that isn't."""
    if (own := done(case, scheme, seed)) is None:
        return []
    rival = next((each for each in case.schemes if each.name == _HELD_AGAINST.get(scheme.name)), None)
    other = None if rival is None else done(case, rival, seed)
    rows = [row(scheme.name, quality(own), seed=seed, **fields)]
    if rival is not None and other is not None:
        lost = drop(other, own)  # one-sided bounds, each at 95 %
        gain = dataclasses.replace(lost, metric="gain", value=-lost.value, low=-lost.upper, high=-lost.lower)
        rows.append(row(f"{scheme.name} against {rival.name}", gain, seed=seed, **fields))
    return rows


def _earlier(before: list[dict[str, Any]], scheme: Scheme, seed: int, fields: dict[str, str]) -> list[dict[str, Any]]:
    """The same rows, as an earlier run wrote them."""
    wanted = {**fields, "seed": str(seed)}
    mine = [each for each in before if each["case"].partition(" against ")[0] == scheme.name]
    return [each for each in mine if all(each[key] == value for key, value in wanted.items())]


def smoke() -> None:
    """Two steps of every scheme."""
    two = Effort(2, "steps")
    for case in (example_case(512, str(two), str(two)), resnet20_case(two, two, 512)):
        for scheme in case.schemes:
            task, start = case.task(0), scheme.start(0)
            student = start if scheme.config is None else paredown.distill(task, scheme.config, model=start)
            print(case.name, scheme.name, sum(p.numel() for p in student.parameters()))


def main(words: list[str]) -> None:
    match words:
        case ["smoke"]:
            smoke()
        case ["example" | "resnet20" as name, *seeds] if set(map(str, SEEDS)).issuperset(seeds):
            chosen = example_case() if name == "example" else resnet20_case()
            run(chosen, tuple(map(int, seeds)) or SEEDS)
        case []:
            run(example_case())
            run(resnet20_case())
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
