"""`Prune(scope="depth")`: whole residual branches go, the least important first, until the goal is met."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import paredown
from paredown import Distill, Prune, Schedule, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import NothingToPruneError, RecipeError
from paredown.graph.branches import Branch
from paredown.graph.collect import Group, Slice
from paredown.graph.dropped import Dropped
from paredown.measure.cost import count_macs, count_parameters
from paredown.pruning.depth import branch_scores
from tests.conftest import SmallBlock, pattern_batches

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))


class Deep(nn.Module):
    """Four residual blocks of width 8, the third of which adds next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(SmallBlock(8, 8, 1) for _ in range(4)))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture
def deep_task() -> Task:
    torch.manual_seed(0)
    model = Deep().eval()
    with torch.no_grad():
        for name in ("conv1", "bn1", "bn2"):
            model.get_parameter(f"blocks.2.{name}.weight").mul_(1e-3)
    return Task(model, (IMAGES,), pattern_batches(128, seed=1), pattern_batches(128, seed=2))


def names_gone(before: nn.Module, after: nn.Module) -> set[str]:
    left = {name for name, _ in after.named_parameters()}
    return {name.partition(".bn")[0].partition(".conv")[0] for name, _ in before.named_parameters() if name not in left}


@pytest.mark.parametrize("importance", ["taylor", "fisher", "magnitude", "group_norm", "activation"])
def test_the_weakest_branch_goes_first(deep_task: Task, importance: str) -> None:
    pruned = paredown.prune(deep_task, Prune(ratio=0.2, scope="depth", importance=importance))  # type: ignore[arg-type]  # a name
    assert type(pruned) is Deep and names_gone(deep_task.model, pruned) == {"blocks.2"}


def test_macs_end_at_the_goal_or_under_it_and_no_more_goes_than_must(deep_task: Task) -> None:
    whole = count_macs(deep_task.model, IMAGES)
    block = whole - count_macs(paredown.prune(deep_task, Prune(ratio=0.01, scope="depth")), IMAGES)
    pruned = paredown.prune(deep_task, Prune(macs="0.6x", scope="depth"))
    assert 0.6 * whole - block < count_macs(pruned, IMAGES) <= 0.6 * whole
    assert count_parameters(pruned) < count_parameters(deep_task.model) and pruned(IMAGES).shape == (4, 10)


def test_a_threshold_drops_what_scores_less(deep_task: Task) -> None:
    def importance(_model: nn.Module, _task: Task, groups: object) -> list[np.ndarray]:
        return [np.full(g.size, 0.1 if "blocks.1" in g.name else 2.0) for g in groups.groups]  # type: ignore[attr-defined]  # Groups

    pruned = paredown.prune(deep_task, Prune(threshold=1.0, scope="depth", importance=importance))
    assert names_gone(deep_task.model, pruned) == {"blocks.1"}
    with pytest.raises(NothingToPruneError, match=r"no branch below the threshold.*raise the threshold"):
        paredown.prune(deep_task, Prune(threshold=0.01, scope="depth", importance=importance))


def test_goals_that_depth_cannot_reach_are_refused(deep_task: Task, pattern_task: Task) -> None:
    with pytest.raises(RecipeError, match=r'MACs or at a threshold.*latency="0.5x".*write macs="0.5x"'):
        paredown.prune(deep_task, Prune(latency="0.5x", scope="depth"), target="onnxruntime")
    with pytest.raises(NothingToPruneError, match=r'within reach of the branches.*scope="global"'):
        paredown.prune(pattern_task, Prune(ratio=0.95, scope="depth"))
    with pytest.raises(NothingToPruneError, match=r'residual branches.*scope="global"'):
        paredown.prune(pattern_task, Prune(ratio=0.1, scope="depth", protect=("block1",)))


def test_a_schedule_drops_in_several_cuts(deep_task: Task) -> None:
    schedule = Schedule(steps=2, between=Effort(1, "steps"))
    pruned = paredown.prune(deep_task, Prune(macs="0.55x", scope="depth", schedule=schedule))
    assert count_macs(pruned, IMAGES) <= 0.55 * count_macs(deep_task.model, IMAGES)


def test_a_shallow_model_is_saved_exported_distilled_and_pruned_again(deep_task: Task, tmp_path: Path) -> None:
    pruned = paredown.prune(deep_task, Prune(ratio=0.4, scope="depth"))
    trained = paredown.distill(deep_task, Distill(training=Training(effort=Effort(1, "steps"))), model=pruned)
    thin = paredown.prune(deep_task, Prune(ratio=0.3), model=trained)
    shallower = paredown.prune(deep_task, Prune(ratio=0.2, scope="depth"), model=thin)
    for i, model in enumerate((pruned, thin, shallower)):
        paredown.save_checkpoint(model, tmp_path / str(i))
        loaded = paredown.load_checkpoint(tmp_path / str(i), Deep())
        with torch.no_grad():
            assert torch.equal(loaded(IMAGES), model.eval()(IMAGES))
        assert paredown.export(model, deep_task, path=tmp_path / f"{i}.onnx").size_bytes > 0
    assert count_macs(shallower, IMAGES) <= 0.8 * count_macs(thin, IMAGES)


def test_scores_of_a_branch_are_those_of_the_groups_inside() -> None:
    def group(name: str, *slices: tuple[str, int]) -> Group:
        atoms = np.arange(2)
        return Group(name, (0, 1), tuple(Slice(tensor, d, atoms, atoms, d == 1) for tensor, d in slices))

    inner = group("a", ("a.weight", 0), ("b.weight", 1))
    stream = group("stem", ("stem.weight", 0), ("a.weight", 1), ("b.weight", 0), ("head.weight", 1))
    branch = Branch("block", (Dropped("a"), Dropped("b", (3,))), ("a.weight", "b.weight"))
    scores = [np.array([1.0, 3.0]), np.array([10.0, 20.0])]
    assert branch_scores(branch, [inner, stream], scores) == (2.0, 4.0)
    assert branch_scores(branch, [stream], scores[1:]) == (7.5, 15.0)  # half of its slices
    assert branch_scores(branch, [], []) == (0.0, 0.0)


@pytest.mark.slow
def test_branches_of_a_published_resnet20_are_dropped(shared_data: ModuleType) -> None:
    from examples.cifar10_resnet20 import task

    job = task(train_limit=512)
    pruned = paredown.prune(job, Prune(ratio=0.3, scope="depth"))
    assert count_macs(pruned, job.inputs) <= 0.7 * count_macs(job.model, job.inputs)
