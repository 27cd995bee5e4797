"""Sparsify, end to end: how much becomes zero, what stays as it was, and that it stays zero afterwards."""

import copy
import dataclasses
import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import paredown
from paredown import Distill, Prune, Sparsify, Task, Training
from paredown.core.effort import Effort
from paredown.core.errors import BatchError, NotFiniteError, NothingToPruneError, OrderError, RecipeError
from paredown.core.steps import SparseMethod
from paredown.pruning.sparse import sparsify_model
from paredown.train.masks import sparse_names, sparse_weights

METHODS = get_args(SparseMethod)
SCOPES = ("global", "uniform")


def prunable(model: nn.Module) -> dict[str, Tensor]:
    return {f"{n}.weight": m.weight.detach() for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def share(weights: dict[str, Tensor]) -> float:
    return sum(int((w == 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def sparsify(task: Task, **fields: Any) -> nn.Module:
    return sparsify_model(task.model, task, Sparsify(samples=128, **fields))


@pytest.mark.parametrize(("method", "scope"), itertools.product(METHODS, SCOPES))
def test_ratio_is_of_all_weights_and_nothing_else_changes(pattern_task: Task, method: Any, scope: Any) -> None:
    before = copy.deepcopy(pattern_task.model.state_dict())
    result = sparsify(pattern_task, ratio=0.6, method=method, scope=scope)
    weights = prunable(result)
    assert abs(share(weights) - 0.6) < 0.002
    assert type(result) is type(pattern_task.model) and not result.training
    assert set(sparse_names(result)) == set(weights)
    for name, value in result.state_dict().items():
        if name not in weights:
            assert torch.equal(value, before[name])
        elif method != "sparsegpt":
            assert torch.equal(value[value != 0], before[name][value != 0])
    after = pattern_task.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before) and sparse_names(pattern_task.model) == ()
    assert all(p.requires_grad for p in (*pattern_task.model.parameters(), *result.parameters()))


def test_global_scope_takes_most_where_it_costs_least_and_uniform_the_same_everywhere(pattern_task: Task) -> None:
    def shares(scope: Any) -> list[float]:
        return [share({n: w}) for n, w in prunable(sparsify(pattern_task, ratio=0.5, scope=scope)).items()]

    assert max(shares("global")) - min(shares("global")) > 0.1
    assert max(shares("uniform")) - min(shares("uniform")) < 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_patterns_hold_along_the_input_channels_at_every_kernel_position(
    pattern_task: Task, method: Any, pattern: Any, n: int, m: int
) -> None:
    result = sparsify(pattern_task, pattern=pattern, method=method)
    for weight in prunable(result).values():
        kept = (weight != 0).flatten(2) if weight.dim() == 4 else (weight != 0)[..., None]  # (out, in, positions)
        for run in torch.split(kept, m, dim=1):
            assert int(run.sum(1).max()) <= n
    assert share({"head": result.get_parameter("head.weight").detach()}) == 0.5
    assert share({"stem": result.get_parameter("stem.0.weight").detach()}) == 0  # one input channel


@pytest.mark.parametrize(
    ("method", "high"),
    [("magnitude", 0.05), ("sensitivity", 0.5), ("sensitivity_loss", 0.5), ("wanda", 0.03), ("sparsegpt", 1e-4)],
)
def test_threshold_of_any_method_takes_what_is_below(pattern_task: Task, method: Any, high: float) -> None:
    few, many = (sparsify(pattern_task, threshold=t, method=method, scope="uniform") for t in (high / 20, high))
    assert 0 < share(prunable(few)) < share(prunable(many)) < 1


def test_magnitude_threshold_is_in_units_of_the_weights(pattern_task: Task) -> None:
    result = sparsify(pattern_task, threshold=0.05)
    for name, weight in prunable(result).items():
        assert torch.equal(weight == 0, pattern_task.model.get_parameter(name).abs() < 0.05)


@pytest.mark.parametrize("goal", [{"ratio": 0.6, "scope": "uniform"}, {"pattern": "2:4"}], ids=str)
def test_sparsegpt_moves_the_output_least(pattern_task: Task, goal: dict[str, Any]) -> None:
    x = torch.cat([inputs for inputs, _ in pattern_task.validation])
    with torch.no_grad():
        expected = pattern_task.model(x)
        moved = {method: float((sparsify(pattern_task, method=method, **goal)(x) - expected).norm()) for method in METHODS}
    assert moved["sparsegpt"] < 0.8 * min(moved["magnitude"], moved["wanda"], moved["sensitivity"])


@pytest.mark.parametrize("method", METHODS)
def test_sparser_step_by_step(pattern_task: Task, method: Any) -> None:
    once = sparsify(pattern_task, ratio=0.4, method=method)
    twice = sparsify_model(once, pattern_task, Sparsify(ratio=0.7, method=method, samples=128))
    assert abs(share(prunable(twice)) - 0.7) < 0.02
    for name, mask in sparse_weights(once).items():
        assert twice.get_parameter(name).detach()[mask].count_nonzero() == 0
    with pytest.raises(NothingToPruneError, match="zero already"):
        sparsify_model(twice, pattern_task, Sparsify(ratio=0.4, method=method, samples=128))


@pytest.mark.parametrize("training", [Training(effort=Effort(3, "steps")), Training(effort=Effort(3, "steps"), ema=0.9)])
def test_zeros_survive_distillation(pattern_task: Task, training: Training) -> None:
    sparse = sparsify(pattern_task, pattern="2:4", method="wanda")
    student = paredown.distill(pattern_task, Distill(training=training), model=sparse)
    masks = sparse_weights(sparse)
    assert all(torch.equal(found, masks[name]) for name, found in sparse_weights(student).items()) and masks
    assert not torch.equal(student.get_parameter("head.weight"), sparse.get_parameter("head.weight"))


def test_sparse_model_can_lose_channels_and_keeps_its_zeros(pattern_task: Task) -> None:
    sparse = sparsify(pattern_task, ratio=0.5, scope="uniform")
    pruned = paredown.prune(pattern_task, Prune(ratio=0.3), model=sparse)
    student = paredown.distill(pattern_task, Distill(training=Training(effort=Effort(2, "steps"))), model=pruned)
    before = sparse_weights(pruned)
    assert all(torch.equal(found, before[name]) for name, found in sparse_weights(student).items())
    assert 0.2 < share(prunable(student)) < 0.8


SHORT = Training(effort=Effort(2, "steps"), learning_rate=0.05)


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight == 0 for name, weight in prunable(model).items()}


def test_zeros_survive_the_training_of_gates(pattern_task: Task) -> None:
    sparse = sparsify(pattern_task, ratio=0.5)
    attention = paredown.ChannelAttention(training=SHORT)
    pruned = paredown.prune(pattern_task, Prune(ratio=0.3, importance=attention), model=sparse)
    assert share(prunable(pruned)) > 0.4


def test_zeros_survive_the_solving_of_layers(pattern_task: Task) -> None:
    pruned = paredown.prune(pattern_task, Prune(ratio=0.3))
    sparse = sparsify_model(pruned, pattern_task, Sparsify(pattern="2:4"))
    tuned = paredown.distill(pattern_task, Distill(training=SHORT, reconstruct=True), model=sparse)
    assert all(torch.equal(found, zeros(sparse)[name]) for name, found in zeros(tuned).items())


@pytest.mark.parametrize("scales", ["fixed", "lsq"])
def test_zeros_survive_quantization_and_the_training_behind_it(pattern_task: Task, scales: Any) -> None:
    sparse = sparsify(pattern_task, ratio=0.5)
    quantized = copy.deepcopy(paredown.quantize(pattern_task, paredown.Quantize(scales=scales), model=sparse))
    assert sparse_names(quantized) == sparse_names(sparse)
    tuned = paredown.distill(pattern_task, Distill(training=SHORT), model=quantized)
    for name in sparse_names(sparse):
        assert torch.equal(tuned.get_parameter(name) == 0, sparse.get_parameter(name) == 0)


@pytest.mark.parametrize("method", ["sensitivity", "sensitivity_loss", "wanda", "sparsegpt"])
def test_one_seed_gives_one_result_whatever_order_a_loader_shuffles_to(pattern_task: Task, method: Any) -> None:
    samples = [(x, y) for batch in pattern_task.train for x, y in zip(*batch, strict=True)]
    loader = torch.utils.data.DataLoader(samples, batch_size=32, shuffle=True)  # type: ignore[arg-type]  # a list will do
    shuffled = dataclasses.replace(pattern_task, train=loader)
    found = []
    for other in (1, 2):
        torch.manual_seed(other)
        found.append(paredown.sparsify(shuffled, Sparsify(ratio=0.5, method=method, samples=32), seed=3))
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in found), strict=True))


def test_a_weight_that_is_not_finite_is_an_error(pattern_task: Task) -> None:
    model = copy.deepcopy(pattern_task.model)
    with torch.no_grad():
        model.get_parameter("head.weight")[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"magnitude of head\.weight must be finite, got NaN"):
        sparsify_model(model, pattern_task, Sparsify(ratio=0.5))


@pytest.mark.parametrize(("argument", "message"), [({"model": "x"}, "must be a torch.nn.Module"), ({"seed": 2**70}, "63 bits")])
def test_arguments_of_another_kind_are_named(pattern_task: Task, argument: dict[str, Any], message: str) -> None:
    for step, config in ((paredown.prune, Prune(ratio=0.3)), (paredown.sparsify, Sparsify(ratio=0.5))):
        with pytest.raises(paredown.ParedownError, match=message):
            step(pattern_task, config, **argument)


def test_protected_modules_stay_dense(pattern_task: Task) -> None:
    result = sparsify(pattern_task, ratio=0.5, protect=("head", "block1"))
    touched = {name for name, weight in prunable(result).items() if (weight == 0).any()}
    assert touched and not any(name.startswith(("head", "block1")) for name in touched)


def test_the_choice_is_the_same_every_time(pattern_task: Task) -> None:
    one, other = (sparsify(pattern_task, ratio=0.5, method="sensitivity").state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_gives_another_order_than_the_output_and_needs_targets(pattern_task: Task) -> None:
    """By hand: |w| times the root of the mean square of the loss's gradient, over pieces of four samples."""
    model, batches = copy.deepcopy(pattern_task.model).eval(), list(pattern_task.train)[:2]
    samples = sum(len(x) for x, _ in batches)
    squares = torch.zeros_like(model.get_parameter("head.weight"))
    fours = [pair for images, labels in batches for pair in zip(images.split(4), labels.split(4), strict=True)]
    for x, y in fours:
        model.zero_grad()
        pattern_task.loss(model(x), y).backward()
        squares += model.get_parameter("head.weight").grad.square()  # type: ignore[union-attr]  # after backward
    score = model.get_parameter("head.weight").detach().abs() * squares.sqrt()
    only = tuple(name for name, _ in model.named_children() if name != "head")

    def gone(method: SparseMethod) -> Tensor:
        chosen = Sparsify(ratio=0.5, method=method, protect=only, samples=samples)
        return prunable(sparsify_model(pattern_task.model, pattern_task, chosen))["head.weight"] == 0

    found = gone("sensitivity_loss")
    assert torch.equal(found, score <= score.flatten().kthvalue(score.numel() // 2).values)
    assert not torch.equal(found, gone("sensitivity"))
    unlabelled = dataclasses.replace(pattern_task, train=[(x, None) for x, _ in batches])
    with pytest.raises(BatchError, match=r'sensitivity_loss takes the gradient of the loss.*write method="sensitivity"'):
        sparsify(unlabelled, ratio=0.5, method="sensitivity_loss")
    sparsify(unlabelled, ratio=0.5, method="sensitivity")


def test_how_samples_are_batched_changes_little(pattern_task: Task) -> None:
    """Gradients of large batches would cancel, and leave another order."""
    x, y = (torch.cat(parts) for parts in zip(*list(pattern_task.train)[:2], strict=True))
    one, other = (dataclasses.replace(pattern_task, train=[*zip(x.split(n), y.split(n), strict=True)]) for n in (len(x), 8))
    found = [prunable(sparsify(task, ratio=0.5, method="sensitivity_loss")) for task in (one, other)]
    assert all(torch.equal(a == 0, b == 0) for a, b in zip(*(weights.values() for weights in found), strict=True))


def test_ratio_that_rounds_to_nothing_is_an_error(pattern_task: Task) -> None:
    with pytest.raises(NothingToPruneError, match=r"ratio=1e-09 of \d+ weights, 0 of which are zero already; ask for more"):
        sparsify(pattern_task, ratio=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_threshold_below_every_score_is_an_error(pattern_task: Task, method: Any) -> None:
    with pytest.raises(NothingToPruneError, match="threshold"):
        sparsify(pattern_task, threshold=1e-30, method=method)


def test_layer_that_would_lose_every_weight_is_an_error(pattern_task: Task) -> None:
    with torch.no_grad():
        pattern_task.model.get_parameter("head.weight").mul_(1e-6)
    with pytest.raises(RecipeError, match=r'none in head.*scope="uniform"'):
        sparsify(pattern_task, ratio=0.5)


def test_protecting_what_does_not_exist_is_an_error(pattern_task: Task) -> None:
    with pytest.raises(RecipeError, match="protect must name modules"):
        sparsify(pattern_task, ratio=0.5, protect=("tail",))


def test_model_without_weights_that_may_become_zero_is_an_error() -> None:
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    task = Task(model=nn.LayerNorm(3), example_inputs=(x,), train=[(x, y)], validation=[(x, y)])
    with pytest.raises(NothingToPruneError, match="no linear layer"):
        sparsify(task, ratio=0.5)


def test_quantized_model_is_an_error_that_names_the_order(pattern_task: Task) -> None:
    quantized = paredown.quantize(pattern_task, paredown.Quantize(samples=64))
    with pytest.raises(OrderError, match="sparsify first"):
        paredown.sparsify(pattern_task, Sparsify(ratio=0.5), model=quantized)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_scope_changes_nothing_for_methods_that_rank_within_rows_or_blocks(pattern_task: Task, method: str) -> None:
    one, other = (sparsify(pattern_task, ratio=0.5, method=method, scope=scope).state_dict() for scope in ("global", "uniform"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(("threshold", "error", "remedy"), [(1e-30, NothingToPruneError, "raise"), (1e6, RecipeError, "lower")])
def test_a_threshold_that_takes_nothing_or_a_whole_layer_says_which_way_to_move_it(
    pattern_task: Task, threshold: float, error: type[Exception], remedy: str
) -> None:
    with pytest.raises(error, match=f"{remedy} the threshold"):
        sparsify(pattern_task, threshold=threshold)
