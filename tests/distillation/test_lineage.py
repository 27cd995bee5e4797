"""Channels by the manifest: where the student was only cut, its features are the teacher's kept ones."""

import copy

import pytest
import torch
from torch import nn

import paredown
from paredown import Prune, Task
from paredown.core.errors import TaskError
from paredown.distillation.features import with_features
from paredown.distillation.lineage import Pair, lineage
from paredown.distillation.losses.hint import hint_loss
from paredown.graph.manifest import Manifest, attach_
from paredown.graph.surgery import cut
from tests.conftest import SmallResNet, make_small_resnet


@pytest.fixture
def student(pattern_task: Task) -> nn.Module:
    """Half of every width gone, the first layer's as well; never trained."""
    return paredown.prune(pattern_task, Prune(ratio=0.7, scope="uniform", widths=paredown.Widths(round_to=4)))


def test_cut_student_pairs_with_exactly_the_teachers_kept_channels(pattern_task: Task, student: nn.Module) -> None:
    pairs, x = lineage(pattern_task.model, student), torch.randn(3, 1, 8, 8)
    _, ours = with_features(student, x, [pair.student for pair in pairs])
    _, theirs = with_features(pattern_task.model, x, [pair.teacher for pair in pairs])
    assert all(ours[pair.student].shape == pair.like(theirs[pair.teacher]).shape for pair in pairs)
    first = next(pair for pair in pairs if pair.student == "stem.1")
    assert first.kept is not None and first.exact
    assert torch.allclose(ours["stem.1"], first.like(theirs["stem.1"]), atol=1e-6)
    assert float(hint_loss(ours["stem.1"], first.like(theirs["stem.1"])).detach()) < 1e-10
    others = tuple(i for i in range(16) if i not in first.kept)[: len(first.kept)]
    wrong = Pair("stem.1", "stem.1", others).like(theirs["stem.1"])
    assert float(hint_loss(ours["stem.1"][:, : len(others)], wrong).detach()) > 1e-3


def two_linears() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))


def test_teacher_that_was_cut_itself_has_positions_of_its_own() -> None:
    original = two_linears()
    teacher = cut(original, Manifest({"0.weight": {0: (0, 2, 3, 5)}, "0.bias": {0: (0, 2, 3, 5)}, "2.weight": {1: (0, 2, 3, 5)}}))
    student = cut(teacher, Manifest({"0.weight": {0: (1, 3)}, "0.bias": {0: (1, 3)}, "2.weight": {1: (1, 3)}}))
    assert lineage(original, student)[0] == Pair("0", "0", (2, 5), -1)
    assert lineage(teacher, student)[0] == Pair("0", "0", (1, 3), -1)
    assert lineage(teacher, copy.deepcopy(teacher))[0] == Pair("0", "0", None, -1)
    x = torch.randn(4, 3)
    for model in (original, teacher):
        assert torch.equal(lineage(model, student)[0].like(model[0](x)), student[0](x))


def test_layers_that_were_rescaled_are_left_out() -> None:
    teacher = two_linears()
    student = attach_(copy.deepcopy(teacher), Manifest({}, {"0.weight": {0: (2.0,) * 6}}))
    assert [pair.student for pair in lineage(teacher, student)] == ["2"]


def test_uncut_student_pairs_with_all_channels() -> None:
    teacher = make_small_resnet()
    pairs = lineage(teacher, copy.deepcopy(teacher))
    assert len(pairs) == 13 and all(pair.kept is None for pair in pairs)


@pytest.mark.parametrize("student", [make_small_resnet(4), nn.Sequential(nn.ReLU())], ids=["other widths", "other layers"])
def test_student_that_was_not_cut_from_the_teacher_is_an_error(student: nn.Module) -> None:
    with pytest.raises(TaskError, match=r"cut from the teacher.*propose pairs"):
        lineage(SmallResNet(8), student)


def test_student_of_a_wider_ancestor_is_an_error_for_a_teacher_that_lacks_its_channels() -> None:
    original = two_linears()
    kept = {"0.bias": {0: (0, 1)}, "2.weight": {1: (0, 1)}}
    teacher = cut(original, Manifest({"0.weight": {0: (0, 1)}, **kept}))
    student = cut(original, Manifest({"0.weight": {0: (0, 2)}, **kept}))
    with pytest.raises(TaskError, match="channels of 0 that the teacher doesn't have"):
        lineage(teacher, student)


def test_a_pair_reads_as_a_line() -> None:
    assert str(Pair("a", "b", (0, 2))) == "a <- b, 2 kept channels"
    assert str(Pair("a", "b")) == "a <- b"
