"""Pruning a task's model: goals, the class, determinism, errors."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.core.errors import NothingToPruneError, NotTrainableError, RecipeError, SurgeryError
from paredown.core.recipe import Recipe
from paredown.core.steps import Prune, Widths
from paredown.graph import equality
from paredown.graph.groups import dependency_groups
from paredown.graph.manifest import manifest_of
from paredown.graph.surgery import cut
from paredown.measure.cost import count_macs, count_parameters
from paredown.pruning.prune import Part, prune_model
from paredown.task.task import Task
from tests.conftest import SmallResNet, make_small_resnet
from tests.graph import nets
from tests.graph.test_groups import Random

X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8)


def task_of(model: nn.Module, *, target: bool = True, **more: Any) -> Task:
    return Task(model, (X,), [(X, Y if target else None)] * 3, [(X, Y)], **more)


@pytest.mark.parametrize("importance", ["taylor", "magnitude", "random"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_macs_end_at_the_goal_or_just_under_it(
    importance: Literal["taylor", "magnitude", "random"], scope: Literal["global", "uniform"]
) -> None:
    model = make_small_resnet(16)
    pruned = prune_model(model, task_of(model), Prune(ratio=0.5, importance=importance, scope=scope, widths=Widths(round_to=4)))
    assert isinstance(pruned, SmallResNet)
    assert 0.45 < count_macs(pruned, X) / count_macs(model, X) <= 0.5
    assert count_parameters(pruned) < count_parameters(model)
    assert pruned(X).shape == (8, 10)


def test_widths_are_multiples_and_protected_modules_whole() -> None:
    model = make_small_resnet(16)
    task = task_of(model, protect=("block1.conv1",))
    pruned = prune_model(model, task, Prune(ratio=0.3, widths=Widths(round_to=8), protect=("head",)))
    assert isinstance(pruned, SmallResNet)
    assert pruned.block1.conv1.weight.shape == (16, 16, 3, 3) and pruned.head.weight.shape == (10, 32)
    assert pruned.block2.conv1.out_channels % 8 == 0


def test_the_input_model_is_untouched_and_one_seed_gives_one_result() -> None:
    model = make_small_resnet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (prune_model(model, task_of(model), Prune(ratio=0.4), seed=3) for _ in range(2))
    assert manifest_of(first) == manifest_of(second)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters()) and manifest_of(model) is None


def test_a_pruned_model_can_be_pruned_again_and_rebuilt_from_its_manifest() -> None:
    model = make_small_resnet(16)
    once = prune_model(model, task_of(model), Prune(ratio=0.3))
    twice = prune_model(once, task_of(model), Prune(macs="0.8x"))
    assert count_macs(twice, X) <= 0.8 * count_macs(once, X)
    manifest = manifest_of(twice)
    assert manifest is not None
    rebuilt = cut(model, manifest)
    assert all(torch.equal(a, b) for a, b in zip(rebuilt.state_dict().values(), twice.state_dict().values(), strict=True))


def test_absolute_macs_are_taken() -> None:
    model = make_small_resnet(16)
    goal = 0.6 * count_macs(model, X)
    pruned = prune_model(model, task_of(model), Prune(macs=f"{goal / 1e3:.3f} k", widths=Widths(round_to=4)))
    assert 0.9 * goal < count_macs(pruned, X) <= goal


def test_a_schedule_goes_by_the_original_whatever_was_cut_before() -> None:
    """Parts of the goal, and the floor, are fractions of the model that was never cut."""
    model = make_small_resnet(16)
    config, whole = Prune(ratio=0.6, importance="magnitude", widths=Widths(round_to=1, floor=0.5)), count_macs(model, X)
    now: nn.Module = model
    for fraction in (0.5, 0.75, 1.0):
        now = prune_model(now, task_of(model), config, part=Part(fraction, model))
        assert 1 - 0.6 * fraction - 0.06 < count_macs(now, X) / whole <= 1 - 0.6 * fraction
    widths = {name: p.shape[0] for name, p in now.named_parameters() if p.dim() == 4}
    assert all(width >= dict(model.named_parameters())[name].shape[0] / 2 for name, width in widths.items())


def test_a_part_of_a_goal_that_an_earlier_cut_reached_changes_nothing() -> None:
    model = make_small_resnet(16)
    once = prune_model(model, task_of(model), Prune(ratio=0.5, importance="magnitude"))
    again = prune_model(once, task_of(model), Prune(ratio=0.3, importance="magnitude"), part=Part(1.0, model))
    assert count_macs(again, X) == count_macs(once, X)
    with pytest.raises(NothingToPruneError, match="below what the model costs"):
        prune_model(model, task_of(model), Prune(macs="1x"), part=Part(1.0, model))


def test_a_schedule_of_a_latency_goes_by_the_originals() -> None:
    model = make_small_resnet(16)

    def latency(candidate: nn.Module) -> float:
        return count_macs(candidate, X) / 1e5

    config, now = Prune(latency="0.5x", importance="magnitude", widths=Widths(round_to=2)), model
    for fraction in (0.5, 1.0):
        now = prune_model(now, task_of(model), config, latency=latency, part=Part(fraction, model))  # type: ignore[assignment]  # the same class
        assert latency(now) <= (1 - 0.5 * fraction) * latency(model)


def test_no_group_ends_above_its_ceiling() -> None:
    model = make_small_resnet(16)
    pruned = prune_model(model, task_of(model), Prune(ratio=0.1, importance="magnitude", widths=Widths(round_to=1, ceiling=0.75)))
    widths = {name: p.shape[0] for name, p in pruned.named_parameters() if p.dim() == 4}
    assert all(width <= 0.75 * dict(model.named_parameters())[name].shape[0] for name, width in widths.items())


def test_a_threshold_needs_no_goal() -> None:
    model = make_small_resnet(16)
    pruned = prune_model(model, task_of(model), Prune(threshold=0.99, importance="magnitude", widths=Widths(round_to=1)))
    assert count_macs(pruned, X) < count_macs(model, X)


def test_a_latency_goal_bisects_over_measured_models() -> None:
    model, tried = make_small_resnet(16), []

    def latency(candidate: nn.Module) -> float:
        tried.append(2.0 + count_macs(candidate, X) / 1e5)
        return tried[-1]

    pruned = prune_model(model, task_of(model), Prune(latency="0.7x"), latency=latency)
    assert 0.6 * tried[0] < latency(pruned) <= 0.7 * tried[0]
    assert len(tried) <= 10


def test_a_latency_out_of_reach_says_what_is_within_it() -> None:
    model = make_small_resnet()
    with pytest.raises(NothingToPruneError, match=r"0\.5x asked, 1x reachable"):
        prune_model(model, task_of(model), Prune(latency="0.5x"), latency=lambda _: 3.0)


def test_labels_are_not_needed() -> None:
    model = make_small_resnet()
    pruned = prune_model(model, task_of(model, target=False), Prune(ratio=0.3))
    assert count_macs(pruned, X) <= 0.7 * count_macs(model, X)


def test_the_users_training_step_is_used() -> None:
    model, called = make_small_resnet(), []

    def step(candidate: nn.Module, batch: Any) -> Tensor:
        called.append(candidate is model)
        return F.cross_entropy(candidate(batch[0]), batch[1])

    prune_model(model, task_of(model, train_step=step), Prune(ratio=0.3))
    assert called == [False] * 4  # three batches for the importances, and one that the cut model has to take


class TwoHeads(nn.Module):
    """In training mode, or in a step of the user's, a second head reads what the first layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 32), nn.Linear(32, 32)
        self.head, self.auxiliary = nn.Linear(32, 4), nn.Linear(32, 4)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x))

    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x)
        output = self.head(torch.relu(self.second(hidden)))
        return (output, self.auxiliary(hidden)) if self.training else output


def _linear_task(model: nn.Module, **fields: Any) -> Task:
    batches = [(torch.randn(8, 10), torch.randint(0, 4, (8,)))]
    return Task(model, (torch.randn(2, 10),), batches, batches, **fields)


def test_what_only_training_runs_still_runs() -> None:
    torch.manual_seed(0)
    pruned = prune_model(TwoHeads(), _linear_task(TwoHeads()), Prune(macs="0.6x", importance="l1"))
    assert pruned.get_submodule("first").out_features == 32 > pruned.get_submodule("second").out_features
    assert [tuple(t.shape) for t in pruned.train()(torch.randn(8, 10))] == [(8, 4), (8, 4)]


def test_a_cut_that_the_users_step_does_not_take_is_an_error() -> None:
    torch.manual_seed(0)

    def step(candidate: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(candidate.late(torch.relu(candidate.second(candidate.hidden(batch[0])))), batch[1])  # type: ignore[operator]

    model = TwoHeads()
    model.late = nn.Linear(32, 4)
    task = _linear_task(model, train_step=step)
    with pytest.raises(SurgeryError, match=r"training step must take .*auxiliary, late"):
        prune_model(model, task, Prune(macs="0.6x", importance="l1"))


def test_taylor_keeps_what_the_output_depends_on() -> None:
    """Channels whose consumers read nothing go first."""
    model = make_small_resnet(16)
    with torch.no_grad():
        model.block1.conv2.weight[:, 4:] *= 1e-6
    pruned = prune_model(model, task_of(model), Prune(ratio=0.1, scope="global", widths=Widths(round_to=4)))
    manifest = manifest_of(pruned)
    assert manifest is not None and set(manifest.kept["block1.conv1.weight"][0]) >= {0, 1, 2, 3}
    assert len(manifest.kept["block1.conv1.weight"][0]) < 16


def test_coupled_groups_lose_equally_many() -> None:
    model, x = nets.chunked()
    task = Task(
        model, (x,), [(x, torch.zeros(3, dtype=torch.long))], [(x, torch.zeros(3, dtype=torch.long))], loss=_spatial, metric=_zero
    )
    pruned = prune_model(model, task, Prune(ratio=0.4, widths=Widths(round_to=1)))
    manifest = manifest_of(pruned)
    assert manifest is not None
    kept = manifest.kept["a.weight"][0]
    assert sum(i < 8 for i in kept) == sum(i >= 8 for i in kept) < 8


def _spatial(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.mean((2, 3)), target)


def _zero(output: Tensor, target: Tensor) -> Tensor:
    return torch.zeros(len(target))


def test_a_goal_out_of_reach_names_the_least_reachable_ratio() -> None:
    model = make_small_resnet()
    with pytest.raises(NothingToPruneError, match=r"0\.01x asked, 0\.\d+x reachable; ask for at least"):
        prune_model(model, task_of(model), Prune(ratio=0.99, widths=Widths(floor=0.5)))


def _all_barriers() -> tuple[nn.Module, dict[str, Any]]:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {}


def test_of_tied_weights_either_module_may_be_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 24), nn.Linear(24, 4)
            self.one, self.other = nn.Linear(24, 24), nn.Linear(24, 24)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.other(F.relu(self.one(self.first(x))))))

    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(8, 8)
    task = Task(model, (x,), [(x, torch.zeros(8, dtype=torch.long))], [(x, torch.zeros(8, dtype=torch.long))])
    for name in ("one", "other"):
        with pytest.raises(NothingToPruneError):  # all that may go are channels of both
            prune_model(model, task, Prune(ratio=0.5, importance="magnitude", widths=Widths(round_to=1, floors={name: 1.0})))
    pruned = prune_model(model, task, Prune(ratio=0.5, importance="magnitude", widths=Widths(round_to=1)))
    assert count_macs(pruned, x) <= 0.5 * count_macs(model, x)


def test_floors_and_ceilings_hold_for_the_groups_whose_channels_a_module_gives(pattern_task: Task) -> None:
    """One convolution keeps three quarters, one a quarter at most; without that the first would keep less."""
    by_name = Widths(round_to=1, floors={"block1.conv1": 0.75, "block2": 0.1}, ceilings={"block2.conv1": 0.25})
    pruned = prune_model(pattern_task.model, pattern_task, Prune(ratio=0.6, widths=by_name))
    assert isinstance(pruned, SmallResNet)
    assert pruned.block1.conv1.out_channels >= 12 and pruned.block2.conv1.out_channels <= 8
    free = prune_model(pattern_task.model, pattern_task, Prune(ratio=0.6, widths=Widths(round_to=1)))
    assert isinstance(free, SmallResNet) and free.block1.conv1.out_channels < 12
    recipe = Recipe((Prune(ratio=0.6, widths=by_name),))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert hash(recipe) == hash(Recipe((Prune(ratio=0.6, widths=by_name),)))
    with pytest.raises(RecipeError, match=r"that give channels, got block1.bn1, a BatchNorm2d; name the layer before it"):
        prune_model(pattern_task.model, pattern_task, Prune(ratio=0.6, widths=Widths(floors={"block1.bn1": 0.5})))
    with pytest.raises(RecipeError, match=r"floors and ceilings must name modules of the model, got block9"):
        prune_model(pattern_task.model, pattern_task, Prune(ratio=0.6, widths=Widths(floors={"block9": 0.5})))


@pytest.mark.parametrize(
    ("prepare", "config", "error", "message"),
    [
        (_all_barriers, Prune(ratio=0.5), NothingToPruneError, "may be removed.*output.*protect less"),
        (lambda: (make_small_resnet(), {}), Prune(threshold=1e-9), NothingToPruneError, "remove something.*ask for more"),
        (lambda: (make_small_resnet(), {}), Prune(ratio=0.5, protect=("nose",)), RecipeError, "nose.*named_modules"),
        (lambda: (make_small_resnet(), {}), Prune(ratio=0.5, widths=Widths(round_to=0)), RecipeError, "target.*round_to=8"),
        (lambda: (make_small_resnet(), {}), Prune(latency="0.5x", scope="depth"), RecipeError, 'depth.*write macs="0.5x"'),
        (lambda: (make_small_resnet(), {}), Prune(latency="0.5x"), RecipeError, 'measure.*macs="0.5x"'),
        (lambda: (make_small_resnet(), {}), Prune(macs="1x"), NothingToPruneError, "below what the model costs"),
        (lambda: (make_small_resnet(), {}), Prune(macs="9 G"), NothingToPruneError, "below what the model costs.*ratio"),
        (lambda: (make_small_resnet().requires_grad_(False), {}), Prune(ratio=0.5), NotTrainableError, "requires_grad_"),
    ],
)  # fmt: skip
def test_bad_input_is_a_typed_error_with_its_remedy(
    prepare: Callable[[], tuple[nn.Module, dict[str, Any]]], config: Prune, error: type[Exception], message: str
) -> None:
    model, more = prepare()
    with pytest.raises(error, match=message):
        prune_model(model, task_of(model, **more), config)


def test_the_cut_itself_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that spoils the cut after the groups were found is caught on the model that would be returned."""
    from paredown.pruning import prune

    def spoiled(model: nn.Module, manifest: Any) -> nn.Module:
        result = cut(model, manifest)
        with torch.no_grad():
            next(result.parameters()).add_(1e-3)
        return result

    monkeypatch.setattr(prune, "cut", spoiled)
    assert prune.check_cut is equality.check_cut
    model = make_small_resnet()
    with pytest.raises(SurgeryError, match="slices of the original"):
        prune_model(model, task_of(model), Prune(ratio=0.3, importance="magnitude"))


@pytest.mark.parametrize("seed", range(3))
def test_a_choice_that_the_class_cannot_take_is_made_anew(seed: int) -> None:
    """Padding in front of a chunk, and groups over padding: right for some counts and channels, wrong for others."""
    torch.manual_seed(seed)
    model = Random(["pad", "pad", "conv", "pad", "group", "conv", "pad", "split"], 8).eval()
    x, batches = torch.randn(2, 2, 3, 3), [(torch.randn(2, 2, 3, 3), torch.zeros(2, dtype=torch.long))]
    config = Prune(ratio=0.1, importance="random", widths=Widths(round_to=1))
    pruned = prune_model(model, Task(model, (x,), batches, batches), config, seed=seed)
    manifest = manifest_of(pruned)
    assert manifest is not None
    consumers = dependency_groups(model, x).consumers
    assert torch.allclose(pruned(x), equality.masked(model, manifest, consumers)(x), atol=1e-4)


def test_the_published_resnet20_is_halved(shared_data: ModuleType) -> None:
    model, x = shared_data.cifar_resnet(20), torch.randn(16, 3, 32, 32)
    y = torch.arange(16) % 10
    pruned = prune_model(model, Task(model, (x[:4],), [(x, y)] * 2, [(x, y)]), Prune(ratio=0.5))
    assert type(pruned) is type(model)
    assert 0.48 < count_macs(pruned, x[:2]) / count_macs(model, x[:2]) <= 0.5
