import copy

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Prune, Task
from paredown.core.errors import RecipeError, TaskError
from paredown.distillation.cka import alignment, centred_gram
from paredown.distillation.pairing import Seen, align, lineage_ends, propose, same_resolutions, see, stage_ends
from tests.conftest import SmallResNet, make_small_resnet

X = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_alignment_is_one_under_rotation_and_scale_and_low_for_noise() -> None:
    x = torch.randn(40, 6, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert alignment(centred_gram(x), centred_gram(3 * x @ rotation + 5)) == pytest.approx(1)
    assert alignment(centred_gram(x), centred_gram(torch.randn(40, 2))) < 0.5
    assert alignment(centred_gram(x), centred_gram(torch.ones(40, 3))) == 0


def test_alignment_by_hand() -> None:
    one, other = torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([[1.0], [1.0], [-2.0]])
    # centred grams are outer products: <xx^T, yy^T> = (x y)^2, over |x|^2 |y|^2
    assert alignment(centred_gram(one), centred_gram(other)) == pytest.approx(0 / (2 * 6))
    assert alignment(centred_gram(one), centred_gram(torch.tensor([[2.0], [-1.0], [-1.0]]))) == pytest.approx(9 / (2 * 6))


def seen(*spaces: tuple[int, ...]) -> list[Seen]:
    return [Seen(str(i), i / max(1, len(spaces) - 1), space, 1, 1, torch.eye(2)) for i, space in enumerate(spaces)]


def test_stage_ends_are_the_last_of_each_resolution() -> None:
    found = stage_ends(seen((8, 8), (8, 8), (4, 4), (4, 4), (2, 2), ()), 3)
    assert [each.name for each in found] == ["1", "3", "4"]
    assert [each.name for each in stage_ends(seen((8, 8), (4, 4), (2, 2)), 2)] == ["1", "2"]


def test_one_resolution_throughout_gives_evenly_spaced_modules() -> None:
    assert [each.name for each in stage_ends(seen(*[(7,)] * 8), 4)] == ["1", "3", "5", "7"]
    assert stage_ends([], 4) == []


def test_largest_modules_of_the_same_resolutions_are_matched() -> None:
    def named(*pairs: tuple[str, tuple[int, ...]]) -> list[Seen]:
        return [Seen(name, 0.5, space, 1, 1, torch.eye(2)) for name, space in pairs]

    ours = named(("stem", (8, 8)), ("a.0", (8, 8)), ("a", (8, 8)), ("b.0", (4, 4)), ("b", (4, 4)), ("pool", (1, 1)), ("head", ()))
    theirs = named(("p.0", (8, 8)), ("p", (8, 8)), ("q.0.conv", (8, 8)), ("q.0.stride", (4, 4)), ("q", (4, 4)), ("head", ()))
    found = same_resolutions(ours, theirs)
    assert [(s.name, t.name) for s, t in found] == [("a", "p"), ("b", "q")]
    assert same_resolutions(ours, named(("p", (8, 8)), ("q", (2, 2)))) == []
    assert same_resolutions(named(("p", (7,))), named(("q", (7,)))) == []


def test_the_order_is_kept_and_the_sum_is_the_largest() -> None:
    def one(name: str, kind: int, depth: float) -> Seen:
        gram = torch.zeros(3, 3, dtype=torch.float64)
        gram[kind, kind] = 1
        return Seen(name, depth, (4,), 1, 1, gram)

    ours = [one("a", 0, 0.2), one("b", 1, 0.8)]
    theirs = [one("p", 1, 0.0), one("q", 0, 0.3), one("r", 1, 0.7), one("s", 2, 1.0)]
    assert align(ours, theirs) == [1, 2]
    assert align(ours[:1], theirs) == [1]
    assert align([], theirs) == [] and align(ours, []) == []


def test_a_copy_with_other_widths_pairs_with_modules_of_its_own_resolution() -> None:
    teacher, student = make_small_resnet(16), make_small_resnet(4, seed=1)
    pairs = propose(teacher, student, (X,), count=3)
    shapes = {each.name: each.space for each in see(teacher, (X,))}
    ours = {each.name: each.space for each in see(student, (X,))}
    assert [pair.student for pair in pairs] == ["block1", "block2"] and not any(pair.exact for pair in pairs)
    assert all(shapes[pair.teacher] == ours[pair.student] for pair in pairs)


def test_a_model_pairs_with_itself() -> None:
    model = make_small_resnet(8)
    for pair in propose(model, copy.deepcopy(model), (X,), count=4):
        one, other = (next(each for each in see(model, (X,)) if each.name == name) for name in (pair.student, pair.teacher))
        assert alignment(one.gram, other.gram) == pytest.approx(1)


def test_overrides_stand() -> None:
    teacher, student = make_small_resnet(16), make_small_resnet(4, seed=1)
    pairs = propose(teacher, student, (X,), count=2, overrides={"stem": "block1.conv2"})
    assert ("stem", "block1.conv2") in [(pair.student, pair.teacher) for pair in pairs] and len(pairs) == 2


@pytest.mark.parametrize(("overrides", "whose"), [({"tail": "stem"}, "student"), ({"stem": "tail"}, "teacher")])
def test_override_that_names_no_module_is_an_error(overrides: dict[str, str], whose: str) -> None:
    with pytest.raises(RecipeError, match=f"modules of the {whose}.*tail"):
        propose(SmallResNet(4), SmallResNet(4), (X,), overrides=overrides)


def test_models_without_parts_are_an_error() -> None:
    with pytest.raises(TaskError, match="name pairs yourself"):
        propose(nn.ReLU(), nn.ReLU(), (X,))


def test_models_are_left_as_they_were() -> None:
    model = make_small_resnet(4).train()
    before = copy.deepcopy(model.state_dict())
    propose(model, make_small_resnet(4), (X,))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_ends_by_lineage_are_exact_pairs_at_different_resolutions(pattern_task: Task) -> None:
    student = paredown.prune(pattern_task, Prune(ratio=0.5))
    pairs = lineage_ends(pattern_task.model, student, pattern_task.inputs, count=2)
    shapes = {each.name: each.space for each in see(student, pattern_task.inputs)}
    assert all(pair.exact for pair in pairs)
    assert [shapes[pair.student] for pair in pairs] == [(8, 8), (4, 4)]


def test_what_has_no_resolution_fills_no_gap_where_others_have_one() -> None:
    found = stage_ends(seen((8, 8), (8, 8), (8, 8), (8, 8), (), ()), 4)
    assert [each.name for each in found] == ["0", "1", "2", "3"]


def test_quantizers_of_weights_are_no_features(small_resnet: nn.Module) -> None:
    task = Task(small_resnet, (X[:8],), [(X[:8], torch.arange(8))], [(X, torch.arange(16) % 10)])
    quantized = paredown.quantize(task, paredown.Quantize(samples=8))
    pairs = propose(small_resnet, quantized, X[:8])  # as many samples as the stem has channels
    assert pairs and all(pair.student.endswith(":output") for pair in pairs)


class Layer(nn.Module):
    """A block with parts, of which a list makes a transformer-like model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Layers(nn.Module):
    """Inputs (batch, sequence, 8)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, width), nn.Linear(width, 4)
        self.layers = nn.ModuleList(Layer(width) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x.mean(1))


def test_blocks_that_are_repeated_pair_with_blocks() -> None:
    torch.manual_seed(0)
    teacher, x = Layers(16, 6), torch.randn(12, 5, 8)
    student = copy.deepcopy(teacher)
    student.layers = nn.ModuleList(student.layers[i] for i in (1, 3, 5))
    pairs = [(pair.student, pair.teacher) for pair in propose(teacher, student, x)]
    assert pairs[-1] == ("layers.2", "layers.5")
    assert [ours for ours, _ in pairs] == ["layers.0", "layers.1", "layers.2"]
    assert {theirs for _, theirs in pairs} <= {f"layers.{i}" for i in range(6)}
    other = propose(teacher, Layers(4, 2), x)
    assert [pair.student for pair in other] == ["layers.0", "layers.1"] and other[-1].teacher == "layers.5"


def test_a_number_of_pairs_is_a_number(small_resnet: nn.Module) -> None:
    with pytest.raises(RecipeError, match="count must be a whole number"):
        propose(small_resnet, make_small_resnet(12), X, count=0)
