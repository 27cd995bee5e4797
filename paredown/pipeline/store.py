"""The run's folder: every finished stage is on disk, whole, before the next begins; a later run can take them up.

    out/
      model.onnx  checkpoint/  recipe.yaml  report.json  report.html     the result
      stages/<key>/  model.onnx  checkpoint/  stage.json                  one finished stage each
      stages/<key>.unfinished/                                            the stage that was running: steps, and how far it got
      stages/<key>.teacher/                                               what the teacher gave, until the run is finished

A key is a digest of everything that a stage depends on: model, data, target, budget, seed, and the steps up to it.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
from torch import nn

from paredown.core.artifact import Candidate, file_digest
from paredown.core.budget import Budget
from paredown.core.errors import ArtifactError, OutputError, ParedownError
from paredown.core.recipe import Recipe
from paredown.core.report import Parity, Report, Stage
from paredown.core.target import Target
from paredown.pipeline.checkpoint import is_whole, save_checkpoint
from paredown.pipeline.evaluate import scratch_folder, writing
from paredown.task.batches import each, tensors
from paredown.task.described import described, described_model, tensor_digest
from paredown.task.task import Task
from paredown.train.schedule import known_length
from paredown.train.state import model_digest

Existing = Literal["refuse", "resume", "replace"]
_SCRATCH = ".result-"  # of a run that was killed while it wrote its result
_SCRATCH_STAGE = re.compile(r"\.[0-9a-f]{16}(\.costs\.json)?-\w+")  # of one that was killed in the middle of a stage
_STAGE = re.compile(r"[0-9a-f]{16}(\.\w+)*")
_OURS = ("model.onnx", "checkpoint", "recipe.yaml", "report.json", "report.html", "stages")


@dataclass(frozen=True)
class Stored:
    """A finished stage as it lies on disk: the gate's verdict and its parity rows."""

    stage: Stage
    parity: tuple[Parity, ...]


_ADAPTER = pydantic.TypeAdapter(Stored)


@dataclass(frozen=True)
class Store:
    """The folder of one run. identity: what all its stages depend on."""

    out: Path
    identity: str

    @classmethod
    def open(cls, out: str | Path, identity: str, existing: Existing) -> "Store":
        """Raises OutputError where the folder holds something and `existing` doesn't say what to do with it.

        What is to be replaced stays until `clear`: the new run may yet be refused.
        """
        if existing not in ("refuse", "resume", "replace"):
            raise OutputError("existing must be refuse, resume or replace", got=existing, remedy='write existing="resume"')
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise OutputError("out must be a folder", got=folder.name, remedy="name another")
        held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        foreign = held if "stages" not in held else [name for name in held if name not in _OURS and not name.startswith(_SCRATCH)]
        if held and (existing == "refuse" or foreign):
            raise OutputError(
                "out must be empty, or a run to take up",
                got=f"{folder.resolve().name} with {(foreign or held)[0]}",
                remedy="pass --resume, or another folder",
            )
        for path in _left_behind(folder):
            _remove(path)
        return cls(folder, identity)

    def clear(self, *, keep: Recipe) -> None:
        """Removes what a run writes, but for one finished stage."""
        held = [self.out / name for name in _OURS if name != "stages" and (self.out / name).exists()]
        stages = [path for path in (self.out / "stages").iterdir() if _STAGE.fullmatch(path.name) and path != self.folder(keep)]
        for path in [*held, *stages]:
            _remove(path)

    def key(self, recipe: Recipe) -> str:
        return hashlib.sha256(f"{self.identity}\n{recipe.to_json()}".encode()).hexdigest()[:16]

    def folder(self, recipe: Recipe) -> Path:
        return self.out / "stages" / self.key(recipe)

    def unfinished(self, recipe: Recipe) -> Path:
        """Where `apply` keeps what it has of a stage; gone when the stage is saved."""
        return self.out / "stages" / f"{self.key(recipe)}.unfinished"

    @property
    def teacher(self) -> Path:
        """Where one stage's training leaves what the teacher gave for the next one's."""
        return self.out / "stages" / f"{self.identity[:16]}.teacher"

    def find(self, recipe: Recipe) -> Stored | None:
        """The finished stage, its paths made absolute; None where there is none, or where its files are not as they were."""
        folder = self.folder(recipe)
        try:
            stored = _ADAPTER.validate_json((folder / "stage.json").read_bytes())
        except (OSError, pydantic.ValidationError, ParedownError):
            return None
        stage = relocated(stored.stage, lambda path: str(folder / path))
        path = Path(stage.candidate.artifact.path)
        if not path.is_file() or file_digest(path) != stage.candidate.artifact.digest or not is_whole(folder / "checkpoint"):
            return None
        return Stored(stage, stored.parity)

    def save(self, recipe: Recipe, stored: Stored, model: nn.Module, file: Path) -> Stored:
        """Writes a stage to a scratch folder beside its place, then renames it: it is there whole, or not at all."""
        folder = self.folder(recipe)
        with scratch_folder(folder) as scratch, writing(folder):
            ready = scratch / "ready"
            ready.mkdir()
            shutil.copyfile(file, ready / "model.onnx")
            save_checkpoint(model, ready / "checkpoint")
            candidate = dataclasses.replace(stored.stage.candidate, checkpoint="checkpoint")
            stage = relocated(dataclasses.replace(stored.stage, candidate=candidate), lambda path: Path(path).name)
            text = _ADAPTER.dump_json(Stored(stage, stored.parity), indent=1, exclude={"stage": {"candidate": {"load"}}})
            (ready / "stage.json").write_bytes(text)
            if folder.exists():
                shutil.rmtree(folder)
            ready.rename(folder)
        shutil.rmtree(self.unfinished(recipe), ignore_errors=True)
        return Stored(relocated(stage, lambda path: str(folder / path)), stored.parity)

    def publish(self, report: Report, render: Callable[[Report], str]) -> Report:
        """The result at the top of the folder: model, checkpoint, recipe, report, each whole. -> the report with its paths."""
        best, written = report.best, self._relative(report)
        with scratch_folder(self.out / "result") as scratch, writing(self.out / "result"):
            shutil.copyfile(best.artifact.path, scratch / "model.onnx")
            shutil.copytree(str(best.checkpoint), scratch / "checkpoint")
            (scratch / "recipe.yaml").write_text(best.recipe.to_yaml(), encoding="utf-8")
            (scratch / "report.json").write_text(written.to_json(), encoding="utf-8")
            (scratch / "report.html").write_text(render(written), encoding="utf-8")
            for path in scratch.iterdir():
                if path.is_dir():
                    _remove(self.out / path.name)
                path.replace(self.out / path.name)
        shutil.rmtree(self.teacher, ignore_errors=True)
        return dataclasses.replace(report, best=_at(best, lambda path: str(self.out / Path(path).name)))

    def _relative(self, report: Report) -> Report:
        """The report with paths relative to the run's folder: it may be moved."""

        def inside(path: str) -> str:
            return Path(path).relative_to(self.out).as_posix()

        return dataclasses.replace(
            report,
            baseline=_at(report.baseline, inside),
            best=_at(report.best, lambda path: Path(path).name),
            front=tuple(_at(candidate, inside) for candidate in report.front),
            stages=tuple(relocated(stage, inside) for stage in report.stages),
        )


def _left_behind(folder: Path) -> list[Path]:
    """Scratch folders in a run's folder, of an earlier run that was killed."""
    stages = folder.glob("stages/.*")
    return [*folder.glob(f"{_SCRATCH}*"), *(path for path in stages if _SCRATCH_STAGE.fullmatch(path.name))]


def identity(task: Task, budget: Budget, target: Target, seed: int) -> str:
    """A digest of the task, the budget, the target and the seed."""
    return digest_of(task, [dataclasses.asdict(budget), dataclasses.asdict(target), seed])


def digest_of(task: Task, asked: Sequence[Any]) -> str:
    """A digest of the model's code and weights, the shapes of the example inputs, the validation split, the metric, the loss and
    the user's own functions, and of what is asked for, as plain data. Of the training split only its length: what it draws may be
    random.
    """
    digest = hashlib.sha256(model_digest(task.model).encode())
    for batch in each(task.validation, "validation"):
        for tensor in tensors(batch):
            digest.update(tensor_digest(tensor).encode())
    functions = [described(f) for f in (task.scorer.fn, task.loss, task.train_step, task.recover)]
    functions += [*described_model(task.model), described([(tuple(t.shape), t.dtype) for t in tensors(task.inputs)])]
    settings = [*asked, sorted(task.protect), task.dynamic, functions]
    scorer, length = task.scorer, known_length(task.train)
    digest.update(json.dumps([*settings, scorer.name, scorer.kind.value, scorer.higher_is_better, length], default=str).encode())
    return digest.hexdigest()


def read_report(out: str | Path) -> Report:
    """report.json of a finished run, with its paths made absolute. Raises ArtifactError."""
    folder = Path(out)
    path = folder / "report.json" if folder.is_dir() else folder
    if not path.is_file():
        raise ArtifactError(
            "a finished run holds report.json", got=folder.name, remedy="name the --out folder of `paredown compress`"
        )
    return Report.from_json(path.read_bytes())


def relocated(stage: Stage, place: Callable[[str], str]) -> Stage:
    """The stage with `place` applied to the paths of its candidate."""
    return dataclasses.replace(stage, candidate=_at(stage.candidate, place))


def _at(candidate: Candidate, place: Callable[[str], str]) -> Candidate:
    artifact = dataclasses.replace(candidate.artifact, path=place(candidate.artifact.path))
    checkpoint = None if candidate.checkpoint is None else place(candidate.checkpoint)
    return dataclasses.replace(candidate, artifact=artifact, checkpoint=checkpoint)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
