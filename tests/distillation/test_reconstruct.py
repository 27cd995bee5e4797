"""Layers of a cut model, solved by least squares for what the original gives."""

import copy

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Distill, Prune, Task, Training
from paredown.core.effort import Effort
from paredown.distillation.reconstruct import _rows, reconstruct_
from paredown.graph.manifest import Manifest
from paredown.graph.surgery import cut


def batches(*shape: int, number: int = 4, seed: int = 0) -> list[tuple[Tensor, None]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(64, *shape, generator=generator), None) for _ in range(number)]


def distance(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((student(x) - teacher(x)).square().mean())


def mlp(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias)).eval()


def without_last(model: nn.Sequential) -> nn.Module:
    kept = tuple(range(7))
    names = {"0.weight": {0: kept}, "0.bias": {0: kept}, "2.weight": {1: kept}}
    return cut(model, Manifest({name: k for name, k in names.items() if name in dict(model.named_parameters())}))


@pytest.mark.parametrize("bias", [True, False])
def test_channel_that_another_one_doubles_is_made_up_for_but_for_the_ridge(bias: bool) -> None:
    teacher, x = mlp(bias), batches(5, seed=1)[0][0]
    with torch.no_grad():
        for parameter in teacher[0].parameters():
            parameter[7] = 2 * parameter[0]
    student = without_last(teacher)
    before = distance(student, teacher, x)
    assert reconstruct_(student, teacher, batches(5)) == 2
    assert distance(student, teacher, x) < 1e-4 * before


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 0)),
        nn.Conv2d(3, 4, 3, dilation=2, bias=False),
        nn.Conv2d(3, 4, 1, stride=(1, 3)),
    ],
    ids=str,
)
def test_rows_are_what_the_weight_is_multiplied_with(conv: nn.Conv2d) -> None:
    x = torch.randn(2, 3, 9, 11)
    expected = conv(x).movedim(1, -1).flatten(0, -2)
    at = torch.randperm(len(expected))[:20]
    found = _rows(conv, x, at) @ conv.weight.flatten(1).T + (0 if conv.bias is None else conv.bias)
    assert torch.allclose(found, expected[at], atol=1e-5)


def test_cut_resnet_gets_nearer_to_its_original_on_fresh_samples(pattern_task: Task) -> None:
    student = paredown.prune(pattern_task, Prune(ratio=0.6, widths=paredown.Widths(round_to=4)))
    fresh = torch.cat([inputs for inputs, _ in pattern_task.validation])
    before = distance(student, pattern_task.model, fresh)
    assert reconstruct_(student, pattern_task.model, pattern_task.train) > 5
    assert distance(student, pattern_task.model, fresh) < 0.5 * before


def test_model_that_was_not_cut_stays_as_it_is() -> None:
    teacher = mlp()
    student = copy.deepcopy(teacher)
    assert reconstruct_(student, teacher, batches(5)) == 0
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_what_makes_unseen_samples_worse_is_taken_back() -> None:
    teacher = mlp()
    student = without_last(teacher)
    before = copy.deepcopy(student.state_dict())
    judged, narrow = batches(5)[0], (1e3 * batches(5, seed=2)[0][0][:1], None)  # one sample, far from those that judge
    with torch.no_grad():
        assert distance(student, teacher, narrow[0]) > 0
    found = reconstruct_(student, teacher, [judged, narrow])
    same = all(torch.equal(student.state_dict()[name], before[name]) for name in before)
    assert same == (found == 0) and found == 0


class Twice(nn.Module):
    """A layer that runs twice, one that shares its weight, a grouped convolution, and one that can be solved."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.twice, self.out = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.grouped(self.into(x))
        return self.out(self.twice(self.twice(hidden).relu()).relu())


def test_layers_that_run_twice_or_are_grouped_keep_their_weights() -> None:
    torch.manual_seed(0)
    teacher = Twice().eval()
    kept = tuple(range(7))
    both = {0: kept, 1: kept}
    names = {"into.weight": {0: kept}, "into.bias": {0: kept}, "grouped.weight": {0: kept}, "grouped.bias": {0: kept}}
    names |= {"twice.weight": both, "twice.bias": {0: kept}, "out.weight": {1: kept}}
    student = cut(teacher, Manifest(names, attributes={"grouped": {"groups": 7, "in_channels": 7, "out_channels": 7}}))
    before = copy.deepcopy(student.state_dict())
    assert reconstruct_(student, teacher, batches(2, 6, 6)) == 2
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and {name.split(".")[0] for name in changed} <= {"into", "out"}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, states: Tensor, keep: Tensor) -> dict[str, Tensor]:
        return {"states": self.down(self.up(states).relu()) * keep[..., None]}


def test_named_inputs_and_batches_of_several_lengths_are_taken() -> None:
    torch.manual_seed(0)
    teacher, kept = Tokens().eval(), tuple(range(9))
    student = cut(teacher, Manifest({"up.weight": {0: kept}, "up.bias": {0: kept}, "down.weight": {1: kept}}))
    data = [({"states": torch.randn(16, n, 6), "keep": torch.ones(16, n)}, None) for n in (5, 7, 7, 5, 7)]
    assert reconstruct_(student, teacher, data) == 2


def test_reconstruction_is_part_of_distillation_and_can_be_left_out(pattern_task: Task) -> None:
    student = paredown.prune(pattern_task, Prune(ratio=0.6, widths=paredown.Widths(round_to=4)))
    training = Training(effort=Effort(1, "steps"), learning_rate=1e-9)
    solved, plain = (
        paredown.distill(pattern_task, Distill(training=training, reconstruct=chosen), model=student) for chosen in (True, False)
    )
    x = torch.cat([inputs for inputs, _ in pattern_task.train])
    assert distance(solved, pattern_task.model, x) < 0.8 * distance(plain, pattern_task.model, x)
