"""Channels by the manifest: where the student was only cut, its features are the teacher's kept ones."""

import copy

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Distill, Hint, Prune, Task, Training
from paredown.core.errors import TaskError
from paredown.distillation.features import with_features
from paredown.distillation.graph_lineage import descent
from paredown.distillation.lineage import Pair, lineage
from paredown.distillation.losses.hint import hint_loss
from paredown.distillation.pairing import lineage_ends
from paredown.distillation.recover import objective_of
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


def test_quantized_student_pairs_by_blocks_with_the_channels_that_were_kept(pattern_task: Task, student: nn.Module) -> None:
    quantized = paredown.quantize(pattern_task, paredown.Quantize(samples=32), model=student)
    x = torch.randn(8, 1, 8, 8)
    pairs = descent(pattern_task.model, quantized, x)
    found = {pair.teacher: pair for pair in pairs}
    assert {"block1", "block2"} <= found.keys() and all(pair.exact and pair.kept is not None for pair in pairs)
    _, ours = with_features(quantized, x, [pair.student for pair in pairs])
    _, cut_alone = with_features(student, x, [pair.teacher for pair in pairs])
    _, theirs = with_features(pattern_task.model, x, [pair.teacher for pair in pairs])
    for pair in pairs:
        assert ours[pair.student].shape == pair.like(theirs[pair.teacher]).shape
        close = nn.functional.cosine_similarity(ours[pair.student].flatten(), cut_alone[pair.teacher].flatten(), 0)
        assert close > 0.99
    by_layers = {pair.student: pair.kept for pair in lineage(pattern_task.model, student)}
    assert found["block1"].kept == by_layers["block1.conv2"]
    ends = lineage_ends(pattern_task.model, quantized, x, count=2)
    assert [pair.teacher for pair in ends] == ["block1", "block2"]


def test_quantized_student_learns_hints_of_its_blocks_without_adapters(pattern_task: Task, student: nn.Module) -> None:
    quantized = paredown.quantize(pattern_task, paredown.Quantize(samples=32), model=student)
    config = Distill(features=(Hint(),), pairs=(("block1", "block1"),), training=Training("2 steps"))
    objective = objective_of(pattern_task, config, quantized)
    assert [(each.pair.teacher, each.adapter) for each in objective.compared] == [("block1", None)]
    trained = paredown.distill(pattern_task, config, model=quantized)
    before, after = (dict(model.named_parameters()) for model in (quantized, trained))
    assert any(not torch.equal(before[name], after[name]) for name in before)


class Longer(SmallResNet):
    """The same layers, and one more at the end."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__(16)
        self.load_state_dict(other.state_dict())
        self.extra = nn.Linear(10, 10)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.extra(super().forward(x))


class OuterNorm(nn.Module):
    """A norm that is folded into the last layer of a block stands outside of it; of `several` another output than the first is
    read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.bn, self.whole = nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.several, self.last = Several(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.whole(self.bn(self.block(x)).relu())
        return self.last(self.several(h)[1].mean((2, 3)))


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.one(x)
        return y, self.two(y)


def test_blocks_that_give_something_else_in_the_graph_are_no_pairs() -> None:
    torch.manual_seed(0)
    model, x = OuterNorm(), torch.randn(32, 1, 8, 8)
    for _ in range(3):
        model.train()(x)
    task = Task(model.eval(), (x[:2],), [(x, torch.arange(32) % 10)], [(x, torch.arange(32) % 10)])
    quantized = paredown.quantize(task, paredown.Quantize(samples=32))
    assert [pair.teacher for pair in descent(model, quantized, x)] == ["whole"]


def test_quantized_model_of_other_layers_is_no_descendant(pattern_task: Task) -> None:
    quantized = paredown.quantize(pattern_task, paredown.Quantize(samples=32))
    x = pattern_task.inputs[0]
    with pytest.raises(TaskError, match="which only one of them has"):
        descent(Longer(pattern_task.model), quantized, x)
    with pytest.raises(TaskError, match="no block in common"):
        descent(nn.Sequential(pattern_task.model), quantized, x)
    assert all(pair.kept is None for pair in descent(pattern_task.model, quantized, x))
