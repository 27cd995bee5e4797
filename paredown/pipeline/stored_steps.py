"""Models made one from the other, each kept in a folder when it is there: after the process was killed what is finished isn't
done again, and what was running goes on from what it left in a folder of its own.

    folder/
      of                     a digest of what all of it depends on
      0-prune/model/         a finished one, as a checkpoint
      1-distill/training/    the one that was running: how far it got
      teacher/               what the teacher gave, which one training after the other asks for the same samples
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from paredown.core.errors import OutputError
from paredown.core.recipe import step_to_dict
from paredown.core.steps import Prune, Step
from paredown.core.target import Target
from paredown.core.training import Resume
from paredown.pipeline.checkpoint import load_checkpoint, save_checkpoint
from paredown.task.described import described
from paredown.train.state import model_digest

_MODEL, _KEY, _TEACHER = "model", "of", "teacher"

Work = tuple[str, Callable[[nn.Module, Resume | None], nn.Module]]


def in_order(works: Sequence[Work], model: nn.Module, original: nn.Module, *, resume: Resume | None, key: str) -> nn.Module:
    """The model after all works; each gets the one before it, and where it may keep how far it got.

    original: of whose class the models are, uncut. resume: where models are kept; None: nowhere. The caller removes it.
    key: names all that the result depends on. Raises OutputError for the folder of another key.
    """
    if resume is None:
        for _, work in works:
            model = work(model, None)
        return model
    _claim(resume.folder, key)
    resume = replace(resume, teacher=resume.teacher or resume.folder / _TEACHER)
    places = [resume.within(f"{index}-{name}") for index, (name, _) in enumerate(works)]
    done = max((index + 1 for index, place in enumerate(places) if (place.folder / _MODEL).exists()), default=0)
    if done:
        model = load_checkpoint(places[done - 1].folder / _MODEL, original)
    for (_, work), place in zip(works[done:], places[done:], strict=True):
        model = work(model, place)
        save_checkpoint(model, place.folder / _MODEL)
        _keep_the_model(place.folder)
    return model


def key_of(model: nn.Module, steps: Sequence[Step], target: Target | str | None, seed: int) -> str:
    """Names what the steps make of a model: by its weights, the steps, the code of functions in them, the target and the seed."""
    functions = [described(step.importance) for step in steps if isinstance(step, Prune)]
    return json.dumps([model_digest(model), [step_to_dict(step) for step in steps], functions, str(target), seed])


def forget(folder: Path) -> None:
    """Removes a folder of `in_order`, and the one around it where nothing else is in that."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds something, or isn't there
        folder.parent.rmdir()


def _claim(folder: Path, key: str) -> None:
    file, digest = folder / _KEY, hashlib.sha256(key.encode()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(digest)
        found = file.read_text()
    except OSError as error:
        raise OutputError("the folder must be one that can be written to", got=str(error), remedy="name another") from None
    if found != digest:
        raise OutputError(
            "resume must name the folder of this very work",
            got=f"{folder.name} of another model, config or seed",
            remedy="name another folder, or delete that one",
        )


def _keep_the_model(folder: Path) -> None:
    """What a work kept of itself has served its turn."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != _MODEL:
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink()
