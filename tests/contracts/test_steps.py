"""What every step promises, over every step: a new one joins the list and gets all of these."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Activations, Distill, MixedBits, Prune, Quantize, Recipe, Sparsify, Task, Training, Weights
from paredown.core.effort import Effort
from paredown.core.knowledge import AttentionTransfer, Blocks, Hint
from paredown.core.recipe import step_name
from paredown.core.steps import Step
from tests.conftest import SmallResNet, make_pattern_task

STEPS: list[Step] = [
    Prune(ratio=0.4),
    Prune(macs="0.6x", importance="magnitude", scope="uniform"),
    Prune(ratio=0.4, scope="depth"),
    Distill(training=Training(effort=Effort(2, "steps"))),
    Distill(training=Training(effort=Effort(2, "steps")), features=(Hint(), AttentionTransfer()), balance=True),
    Distill(training=Training(effort=Effort(2, "steps")), reconstruct=Blocks(training=Training(effort=Effort(2, "steps")))),
    Sparsify(ratio=0.5),
    Quantize(samples=128),
    Quantize(samples=128, weights=Weights(symmetric=False), activations=Activations(observer="minmax"), refine=("equalization",)),
    Quantize(kind="weight_only", bits=4),
    Quantize(kind="dynamic"),
    Quantize(kind="palette", bits=4),
    Quantize(samples=128, bits=4, activations=Activations(bits=4)),
    Quantize(samples=128, bits=MixedBits(4, evaluations=2)),
]


@dataclass(frozen=True)
class Ran:
    """A step on a task, once for all tests that only look. before, modes: of the task's model; drawn: two of the global
    generator's draws right after it.
    """

    task: Task
    step: Step
    result: nn.Module
    before: dict[str, Tensor]
    modes: list[bool]
    drawn: tuple[Tensor, Tensor]


def run(task: Task, step: Step) -> nn.Module:
    """On one thread: what is to come out bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return paredown.apply(task, Recipe((step,)))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=STEPS, ids=step_name)
def ran(request: pytest.FixtureRequest, trained_small_resnet: SmallResNet) -> Ran:
    task = make_pattern_task(trained_small_resnet)
    before, modes = copy.deepcopy(task.model.state_dict()), [m.training for m in task.model.modules()]
    result = run(task, request.param)
    return Ran(task, request.param, result, before, modes, (torch.rand(4), torch.rand(4)))


def test_input_model_is_untouched(ran: Ran) -> None:
    after = ran.task.model.state_dict()
    assert list(after) == list(ran.before) and all(torch.equal(after[name], ran.before[name]) for name in ran.before)
    assert [m.training for m in ran.task.model.modules()] == ran.modes
    owned = {tensor.data_ptr() for tensor in after.values()}
    assert not owned & {tensor.data_ptr() for tensor in ran.result.state_dict().values()}, (
        "the result shares memory with the input"
    )


def test_output_shapes_are_kept_at_any_batch_size(ran: Ran) -> None:
    with torch.no_grad():
        assert [tuple(ran.result(torch.randn(n, 1, 8, 8)).shape) for n in (1, 3, 7)] == [(1, 10), (3, 10), (7, 10)]


@pytest.mark.parametrize("step", STEPS, ids=step_name)
def test_step_round_trips_as_part_of_a_recipe(step: Step) -> None:
    recipe = Recipe((step,))
    assert Recipe.parse(recipe.to_yaml()) == recipe == Recipe.parse(recipe.to_json())


def test_same_seed_gives_the_same_result(ran: Ran) -> None:
    one, other = ran.result.state_dict(), run(ran.task, ran.step).state_dict()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_result_exports_and_agrees_with_its_file(ran: Ran, tmp_path: Path) -> None:
    assert paredown.export(ran.result, ran.task, path=tmp_path / "model.onnx").size_bytes > 0


def test_global_random_state_is_left_alone_or_seeded_never_frozen(ran: Ran) -> None:
    assert not torch.equal(*ran.drawn)
