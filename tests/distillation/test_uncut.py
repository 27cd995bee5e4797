"""What a student's training freezes: by name, or what is still the teacher's own."""

import copy

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Blocks, ChannelAttention, Distill, Prune, Recipe, Slimming, Task, Training, Widths
from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.distillation.uncut import before_the_cut
from tests.conftest import make_small_resnet

SHORT = Effort(3, "steps")
FIRST = ("stem.0", "stem.1", "block1.conv1", "block1.bn1", "block1.conv2", "block1.bn2")


def cut_late(task: Task) -> nn.Module:
    return paredown.prune(task, Prune(ratio=0.2, widths=Widths(round_to=2), protect=("stem", "block1")))


def test_what_runs_before_the_first_cut_layer_is_the_teachers_own(pattern_task: Task) -> None:
    student = cut_late(pattern_task)
    assert before_the_cut(pattern_task.model, student, pattern_task.inputs) == FIRST
    with torch.no_grad():
        student.get_submodule("block1.bn1").bias[0] += 1  # type: ignore[operator]  # a parameter
    assert before_the_cut(pattern_task.model, student, pattern_task.inputs) == FIRST[:3]
    assert before_the_cut(pattern_task.model, make_small_resnet(8), pattern_task.inputs) == ()


class Twice(nn.Module):
    """A layer that runs again behind the cut, one whose weight another one shares, and a factor of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.tied, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.last.weight = self.tied.weight
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.tied(self.again(self.first(x))) * self.gain))


def test_layers_that_are_used_again_are_trained() -> None:
    teacher, x = Twice(), torch.randn(2, 4)
    student = copy.deepcopy(teacher)
    assert before_the_cut(teacher, student, x) == ("first",)
    with torch.no_grad():
        student.gain[0] = 2
    assert before_the_cut(teacher, student, x) == ()


@pytest.mark.parametrize("freeze", ["uncut", FIRST, ("stem", "block1")])
def test_what_is_frozen_stays_as_it_is_with_its_statistics(freeze: object, pattern_task: Task) -> None:
    student = cut_late(pattern_task)
    training = Training(effort=SHORT, learning_rate=0.1, freeze=freeze)  # type: ignore[arg-type]  # either form
    found = paredown.distill(pattern_task, Distill(training=training), model=student).state_dict()
    changed = {name.split(".")[0] for name, value in student.state_dict().items() if not torch.equal(value, found[name])}
    assert changed == {"block2", "head"}


def test_names_are_checked_and_round_trip() -> None:
    for freeze in ("uncut", ("stem", "block1")):
        recipe = Recipe((Distill(training=Training(freeze=freeze)),))  # type: ignore[arg-type]  # either form
        assert Recipe.parse(recipe.to_yaml()) == recipe
    for bad in ("stem", 3, (1,)):
        with pytest.raises(RecipeError, match="freeze"):
            Training(freeze=bad)  # type: ignore[arg-type]  # that is the point
    for kind in (Blocks, Slimming, ChannelAttention):
        with pytest.raises(RecipeError, match=r'by name, got freeze="uncut"'):
            kind(training=Training(freeze="uncut"))


@pytest.mark.parametrize("importance", [Slimming, ChannelAttention])
def test_a_name_that_the_model_lacks_is_an_error(importance: type, pattern_task: Task) -> None:
    training = Training(effort=SHORT, freeze=("steem",))
    with pytest.raises(RecipeError, match="freeze must name modules of the model, got steem"):
        paredown.distill(pattern_task, Distill(training=training))
    with pytest.raises(RecipeError, match="got steem"):
        paredown.prune(pattern_task, Prune(ratio=0.3, importance=importance(training=training)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Distill(reconstruct=True, training=Training(effort=SHORT)), "reconstruct=True is for .*; leave reconstruct out"),
        (Distill(training=Training(effort=SHORT, freeze="uncut")), 'freeze="uncut" is for .*; name the modules to freeze'),
    ],
)
def test_what_would_do_nothing_for_a_student_of_other_layers_is_an_error(config: Distill, words: str, pattern_task: Task) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(pattern_task.inputs[0].flatten(1).shape[1], 4))
    with pytest.raises(RecipeError, match=words):
        paredown.distill(pattern_task, config, model=other)
