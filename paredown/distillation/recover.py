"""Recovery: a copy of a cut or quantized model, or an independent one, trained against a teacher.

What it is trained on stands in `objective.py`; by default the teacher's outputs and the task's own `loss`, or its `train_step`
where there is one, which then runs a forward pass of its own. hard_weight 0: targets are never read. hard_weight 1 without
feature losses: no teacher is asked, a plain fine-tuning; with a `train_step` that alone is used.
"""

import contextlib
import copy
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from torch import fx, nn

from paredown.core.errors import OutputError, RecipeError, TaskError
from paredown.core.knowledge import Blocks, SequenceLevel
from paredown.core.progress import Progress, silent
from paredown.core.steps import Distill
from paredown.core.training import Resume
from paredown.distillation.attended import attend
from paredown.distillation.blockwise import learn_blocks_
from paredown.distillation.compared import attached, compare
from paredown.distillation.language import Writer
from paredown.distillation.objective import Objective
from paredown.distillation.reconstruct import reconstruct_
from paredown.distillation.suited import settled
from paredown.distillation.teacher import Asked
from paredown.distillation.teachers import Given, OwnAverage, Panel, models_of, own_average, require_hidden_layers, teacher_of
from paredown.distillation.uncut import before_the_cut, has_layers_of
from paredown.task.batches import device_of, each
from paredown.task.task import Task
from paredown.train.batchnorm import recalibrate_, require_two_samples
from paredown.train.freeze import require_modules
from paredown.train.loop import Loss, fit_
from paredown.train.schedule import known_length
from paredown.train.seeds import seeded
from paredown.train.state import Keeping, model_digest

_TRAINING, _BLOCKS, _OUTPUTS = "training", "blocks", "outputs"  # folders of a training that can be taken up

Learning = Callable[[nn.Module], AbstractContextManager[Callable[[Loss], Loss]]]


def distill_model(
    model: nn.Module,
    task: Task,
    config: Distill,
    *,
    teacher: Given = None,
    seed: int = 0,
    progress: Progress = silent,
    learning: Learning | None = None,
    resume: Resume | None = None,
) -> nn.Module:
    """A trained copy of the model, in evaluation mode. Neither the model nor a teacher is touched.

    teacher: None: the task's own model; several: their outputs are combined, hidden layers are the first one's; "ema",
    MovingAverage(): the moving average of the student itself. Where the task has a `recover`, that is called on the copy and
    nothing else is done but what `config.reconstruct` and `config.recalibrate` say.
    learning: a context around the training of the copy, which gives what has to be done to the loss: quantization learns
    its scales so.
    resume: where it is kept how far the training got; what it leaves there, `forget_training` removes.
    Raises NotTrainableError; TaskError where the outputs of teacher and student differ in shape, hidden layers can't be
    compared, or a target is missing that a loss needs; RecipeError for a teacher that is none; TrainingDivergedError.
    """
    task.require_trainable(model)
    if task.recover is None and task.train_step is None:  # what these do to a model is theirs
        require_two_samples(model, task.train)
    teachers = models_of(teacher, task.model)
    frozen = (*task.protect, *_frozen(model, teachers[0], task, config))
    key = "" if resume is None else _key((model, *teachers), teacher, task, config, seed)
    student, keeping = copy.deepcopy(model), None if resume is None else Keeping(resume, key)
    with seeded(seed):
        _prepare_(student, teachers[0], task, config, frozen, seed, progress, keeping)
    if task.recover is not None:
        return _recovered(task.recover, student)
    with seeded(seed):
        loss = objective_of(task, config, student, teacher, resume)
    with attached(student, loss.compared), (learning or _unchanged)(student) as changed:
        fit_(
            student,
            task.train,
            changed(loss),
            config.training,
            frozen=frozen,
            seed=seed,
            progress=lambda _, fraction: progress("distill", fraction),
            keeping=None if keeping is None else keeping.within(_TRAINING, loss),
        )
    with contextlib.suppress(OutputError):  # the disk is full by now: the student isn't lost for that
        loss.keep()  # what teachers gave is on disk, where it is to be
    return student


def forget_training(folder: Path) -> None:
    """Removes what a resumable distillation left in a folder, and the folder where nothing else is in it."""
    for name in (_TRAINING, _BLOCKS, _OUTPUTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds something, or isn't there
        folder.rmdir()


def _key(models: Sequence[nn.Module], teacher: Given, task: Task, config: Distill, seed: int) -> str:
    """Of all that a training depends on but the batches, and the code behind the loss's name."""
    average = own_average(teacher)
    how = teacher.combine if isinstance(teacher, Panel) else "" if average is None else repr(average)
    functions = [getattr(each, "__qualname__", type(each).__qualname__) for each in (task.loss, task.train_step)]
    return " ".join([*map(model_digest, models), how, *functions, repr(task.protect), repr(config), str(seed)])


@contextmanager
def _unchanged(_student: nn.Module) -> Iterator[Callable[[Loss], Loss]]:
    yield lambda loss: loss


def _prepare_(
    student: nn.Module,
    original: nn.Module,
    task: Task,
    config: Distill,
    frozen: Collection[str],
    seed: int,
    progress: Progress,
    keeping: Keeping | None,
) -> None:
    """What comes before the training from end to end: layers solved or batch norms recalibrated, then blocks trained."""
    blocks = config.reconstruct if isinstance(config.reconstruct, Blocks) else None
    solve = blocks.solve if blocks is not None else config.reconstruct
    if config.reconstruct is True:  # blocks say so themselves
        _require_layers("reconstruct=True", original, student, "leave reconstruct out")
    solved = reconstruct_(student, original, task.train, frozen=frozen, seed=seed) if solve else 0
    if config.recalibrate and not solved:
        recalibrate_(student, task.train, frozen=frozen)
    if blocks is None:
        return
    learn_blocks_(
        student,
        original,
        task,
        blocks,
        frozen=frozen,
        seed=seed,
        progress=lambda _, fraction: progress("blocks", fraction),
        keeping=None if keeping is None else keeping.within(_BLOCKS),
    )
    if config.recalibrate and blocks.inputs == "teacher":  # statistics so far are those of inputs that no block will get
        recalibrate_(student, task.train, frozen=frozen)


def _frozen(model: nn.Module, original: nn.Module, task: Task, config: Distill) -> tuple[str, ...]:
    """What the config freezes. Raises RecipeError for a name that the model lacks."""
    if config.training.freeze == "uncut":
        _require_layers('freeze="uncut"', original, model, "name the modules to freeze")
        return before_the_cut(original, model, task.inputs)
    return require_modules(model, config.training)


def _require_layers(option: str, teacher: nn.Module, student: nn.Module, remedy: str) -> None:
    """Raises RecipeError where the option would do nothing. Layers of a quantized student are those of a graph."""
    if not isinstance(student, fx.GraphModule) and not has_layers_of(teacher, student):
        raise RecipeError(f"{option} is for a student with layers of its teacher", got="none in common", remedy=remedy)


def objective_of(
    task: Task, config: Distill, student: nn.Module, teacher: Given = None, resume: Resume | None = None
) -> Objective:
    """The loss that a Distill stands for; a teacher is made only where it will be asked. resume: where its outputs are kept."""
    if not config.features and (config.soft is None or config.hard_weight == 1):
        return Objective(task, config)
    if config.features:
        require_hidden_layers(teacher)
    config = settled(config, task, student) if config.hard_weight < 1 else config
    asked = teacher_of(
        teacher,
        student,
        task.model,
        batches_per_pass=known_length(task.train),
        folder=None if resume is None else resume.teacher or resume.folder / _OUTPUTS,
        lasting=resume is not None and resume.teacher is not None,
    )
    writer = _writer(asked, config)
    if not config.features:
        return Objective(task, config, asked, writer=writer)
    inputs, _ = next(each(task.train, "train", device_of(student)))
    attended = attend(config, asked.model, student, inputs)
    return Objective(task, config, asked, compare(config, asked, student, inputs), attended, writer)


def _writer(asked: Asked, config: Distill) -> Writer | None:
    if not isinstance(config.soft, SequenceLevel) or config.hard_weight == 1:
        return None
    if isinstance(asked, OwnAverage):
        raise RecipeError(
            "text is written by a teacher that stays as it is", got="its own moving average", remedy="write soft=TokenLevel()"
        )
    return Writer(asked, config.soft)


def _recovered(recover: Callable[[nn.Module], nn.Module], student: nn.Module) -> nn.Module:
    """What the user's `recover` makes of the student, in evaluation mode. Raises TaskError where that is another model."""
    expected, name, remedy = _shapes(student), type(student).__qualname__, "return the module that it was given"
    model = recover(student)
    if not isinstance(model, nn.Module):
        raise TaskError("recover must return a model", got=type(model).__name__, remedy=remedy)
    if type(model).__qualname__ != name:
        raise TaskError(f"recover must return the {name} that it was given", got=type(model).__qualname__, remedy=remedy)
    found = _shapes(model)
    other = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    if other:
        got = f"{other[0]} of shape {found.get(other[0])} for {expected.get(other[0])}"
        raise TaskError("recover must return a model of the widths that it was given", got=got, remedy=remedy)
    return model.eval()


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
