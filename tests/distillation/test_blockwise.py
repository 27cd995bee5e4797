"""Blocks of a cut or quantized student, trained by themselves for what their originals give."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import paredown
from paredown import Blocks, Distill, Prune, Quantize, Recipe, Task, Training, Widths
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError, TaskError
from paredown.distillation import blockwise
from paredown.distillation.blockwise import learn_blocks_, relative_error
from paredown.train.loop import fit_

SHORT = Training(effort=Effort(2, "epochs"), learning_rate=0.02)
STILL = Training(effort=Effort(1, "steps"), learning_rate=1e-9)


def distance(student: nn.Module, task: Task) -> float:
    with torch.no_grad():
        return float(sum((student(x) - task.model(x)).square().mean() for x, _ in task.validation))


def unlabelled(task: Task) -> Task:
    return Task(task.model, task.inputs, [(x, None) for x, _ in task.train], task.validation)


def cut_by(task: Task) -> nn.Module:
    return paredown.prune(task, Prune(ratio=0.6, widths=Widths(round_to=4)))


@pytest.mark.parametrize("inputs", ["student", "teacher"])
def test_blocks_bring_a_cut_model_nearer_to_its_original_without_labels(inputs: Any, pattern_task: Task) -> None:
    task, student = unlabelled(pattern_task), cut_by(pattern_task)
    blocks = Blocks(training=SHORT, inputs=inputs, solve=False)
    found, plain = (
        paredown.distill(task, Distill(hard_weight=0, training=STILL, reconstruct=r), model=student) for r in (blocks, False)
    )
    assert distance(found, task) < 0.95 * distance(plain, task)


def test_blocks_of_a_quantized_model_learn_in_its_graph(pattern_task: Task) -> None:
    task = unlabelled(pattern_task)
    student = paredown.quantize(task, Quantize(samples=128), model=cut_by(pattern_task))
    before, config = distance(student, task), Distill(hard_weight=0, training=STILL, reconstruct=Blocks(training=SHORT))
    found = paredown.distill(task, config, model=student)
    assert isinstance(found, type(student).__mro__[1]) and len(list(found.graph.nodes)) == len(list(student.graph.nodes))
    assert distance(found, task) < 0.9 * before == 0.9 * distance(student, task)


def test_gradients_stay_within_a_block_and_what_is_protected_stays(pattern_task: Task) -> None:
    student = cut_by(pattern_task)
    before = copy.deepcopy(student.state_dict())
    task = Task(pattern_task.model, pattern_task.inputs, pattern_task.train, pattern_task.validation, protect=("block1",))
    names = learn_blocks_(student, task.model, task, Blocks(training=SHORT))
    assert names == ("block2", "head")  # what the stem gives is exactly what the teacher's gives
    changed = {name.split(".")[0] for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"block2", "head"}
    hooks = [m for m in student.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks and not student.training


def test_an_uncut_copy_has_nothing_to_learn(pattern_task: Task) -> None:
    student = copy.deepcopy(pattern_task.model)
    with torch.no_grad():
        student.head.bias += 1
    learn_blocks_(student, pattern_task.model, pattern_task, Blocks(training=STILL))
    x = pattern_task.inputs[0]
    with torch.no_grad():
        ours, theirs = student.stem(x), pattern_task.model.stem(x)
    assert float(relative_error(ours, theirs)) < 1e-2


def test_relative_error_by_hand() -> None:
    assert float(relative_error(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))) == pytest.approx(2.5 / 10)


def test_a_student_of_another_descent_is_an_error(pattern_task: Task) -> None:
    stranger = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(TaskError, match="cut from the teacher"):
        paredown.distill(pattern_task, Distill(reconstruct=Blocks()), model=stranger)


def test_nothing_left_to_train_is_an_error(pattern_task: Task) -> None:
    parts = ("stem", "block1", "block2", "head")
    task = Task(pattern_task.model, pattern_task.inputs, pattern_task.train, pattern_task.validation, protect=parts)
    with pytest.raises(TaskError, match="protect less"):
        learn_blocks_(cut_by(pattern_task), task.model, task, Blocks())


def test_the_config_checks_itself_and_round_trips() -> None:
    for bad in ({"inputs": "mine"}, {"training": 3}, {"solve": 1}):
        with pytest.raises(RecipeError):
            Blocks(**bad)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(RecipeError, match="reconstruct"):
        Distill(reconstruct="blocks")  # type: ignore[arg-type]  # that is the point
    for chosen in (True, Blocks(), Blocks(training=Training(effort=Effort(9, "seconds")), inputs="teacher", solve=False)):
        recipe = Recipe((Distill(reconstruct=chosen),))
        assert Recipe.parse(recipe.to_yaml()) == recipe == Recipe.parse(recipe.to_json())


def test_a_block_that_training_makes_worse_keeps_its_weights(pattern_task: Task) -> None:
    """A learning rate that wrecks all of them, and targets that are never read."""
    task = Task(pattern_task.model, pattern_task.inputs, pattern_task.train, pattern_task.validation)
    student = cut_by(task)
    before = copy.deepcopy(student.state_dict())
    wild = Training(effort=Effort(3, "steps"), learning_rate=30.0, warmup=0)
    assert learn_blocks_(student, task.model, task, Blocks(training=wild)) == ()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_only_the_blocks_that_are_worse_go_back(pattern_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    student = cut_by(pattern_task)
    before = copy.deepcopy(student.state_dict())

    def spoiled(model: nn.Module, *given: Any, **options: Any) -> nn.Module:
        found = fit_(model, *given, **options)
        with torch.no_grad():
            student.get_submodule("block1.bn2").weight.mul_(-3)  # type: ignore[operator]  # a parameter
        return found

    monkeypatch.setattr(blockwise, "fit_", spoiled)
    better = learn_blocks_(student, pattern_task.model, pattern_task, Blocks(training=SHORT))
    assert better == ("block2", "head")
    changed = {name.split(".")[0] for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(better)
