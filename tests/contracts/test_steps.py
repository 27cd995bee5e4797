"""What every step promises, over every step: a new one joins the list and gets all of these."""

import copy

import pytest
import torch
from torch import nn

import paredown
from paredown import Activations, Distill, MixedBits, Prune, Quantize, Recipe, Task, Training, Weights
from paredown.core.effort import Effort
from paredown.core.knowledge import AttentionTransfer, Blocks, Hint
from paredown.core.recipe import step_name
from paredown.core.steps import Step

STEPS: list[Step] = [
    Prune(ratio=0.4),
    Prune(macs="0.6x", importance="magnitude", scope="uniform"),
    Prune(ratio=0.4, scope="depth"),
    Distill(training=Training(effort=Effort(2, "steps"))),
    Distill(training=Training(effort=Effort(2, "steps")), features=(Hint(), AttentionTransfer()), balance=True),
    Distill(training=Training(effort=Effort(2, "steps")), reconstruct=Blocks(training=Training(effort=Effort(2, "steps")))),
    Quantize(samples=128),
    Quantize(samples=128, weights=Weights(symmetric=False), activations=Activations(observer="mse"), refine=("equalization",)),
    Quantize(kind="weight_only", bits=4),
    Quantize(kind="dynamic"),
    Quantize(kind="palette", bits=4),
    Quantize(samples=128, bits=4, activations=Activations(bits=4)),
    Quantize(samples=128, bits=MixedBits(4, evaluations=2)),
]
each_step = pytest.mark.parametrize("step", STEPS, ids=step_name)


def run(task: Task, step: Step) -> nn.Module:
    return paredown.apply(task, Recipe((step,)))


@each_step
def test_input_model_is_untouched(pattern_task: Task, step: Step) -> None:
    before, modes = copy.deepcopy(pattern_task.model.state_dict()), [m.training for m in pattern_task.model.modules()]
    result = run(pattern_task, step)
    after = pattern_task.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert [m.training for m in pattern_task.model.modules()] == modes
    owned = {tensor.data_ptr() for tensor in pattern_task.model.state_dict().values()}
    assert not owned & {tensor.data_ptr() for tensor in result.state_dict().values()}, "the result shares memory with the input"


@each_step
def test_output_shapes_are_kept_at_any_batch_size(pattern_task: Task, step: Step) -> None:
    result = run(pattern_task, step)
    with torch.no_grad():
        assert [tuple(result(torch.randn(n, 1, 8, 8)).shape) for n in (1, 3, 7)] == [(1, 10), (3, 10), (7, 10)]


@each_step
def test_step_round_trips_as_part_of_a_recipe(step: Step) -> None:
    recipe = Recipe((step,))
    assert Recipe.parse(recipe.to_yaml()) == recipe == Recipe.parse(recipe.to_json())


@each_step
def test_same_seed_gives_the_same_result(pattern_task: Task, step: Step) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, other = run(pattern_task, step).state_dict(), run(pattern_task, step).state_dict()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[name], other[name]) for name in one)


@each_step
def test_result_exports_and_agrees_with_its_file(pattern_task: Task, step: Step, tmp_path: object) -> None:
    artifact = paredown.export(run(pattern_task, step), pattern_task, path=f"{tmp_path}/model.onnx")
    assert artifact.size_bytes > 0


@each_step
def test_global_random_state_is_left_alone_or_seeded_never_frozen(pattern_task: Task, step: Step) -> None:
    run(pattern_task, step)
    assert not torch.equal(torch.rand(4), torch.rand(4))
