"""On bare matrices: the exact least squares where that is known, and less error than methods that don't update what stays."""

import pytest
import torch
from torch import Tensor

from paredown.pruning.sparsity.choose import lowest, lowest_of_rows
from paredown.pruning.sparsity.nm import nm_mask, runs
from paredown.pruning.sparsity.sparsegpt import inverse_cholesky, solve
from paredown.pruning.sparsity.wanda import wanda


def problem(rows: int = 16, columns: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, correlated inputs of unequal size, and inputs of the same kind that no method sees."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mixing *= torch.rand(columns, generator=generator, dtype=torch.float64) * 3
    seen, unseen = torch.randn(2, 512, columns, generator=generator, dtype=torch.float64) @ mixing
    return weight, seen, unseen


def error(weight: Tensor, sparse: Tensor, x: Tensor) -> float:
    return float((x @ (weight - sparse).T).norm() / (x @ weight.T).norm())


def test_two_columns_by_hand() -> None:
    hessian = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    found = solve(weight, hessian, [(0, 2)], lambda s: torch.tensor([[True, False]]), damping=0)
    assert torch.allclose(found, torch.tensor([[0.0, 4 + 3 * 0.5 / 1.0]], dtype=torch.float64))


def test_saliency_by_hand() -> None:
    hessian = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    seen: list[Tensor] = []

    def choose(saliency: Tensor) -> Tensor:
        seen.append(saliency)
        return torch.zeros_like(saliency, dtype=torch.bool)

    solve(torch.tensor([[3.0, 4.0]]), hessian, [(0, 2)], choose, damping=0)
    # 1 / inverse of the hessian over the columns that are left: (2 - 0.25) for the first, 1 for the second
    assert torch.allclose(seen[0], torch.tensor([[9 * 1.75, 16 * 1.0]], dtype=torch.float64))


def test_first_columns_masked_gives_the_least_squares_solution() -> None:
    weight, x, _ = problem()
    gone = torch.arange(32) < 12
    mask = gone.expand(16, 32)
    spans = runs(32, 1, 8)
    starts = iter(spans)

    def choose(saliency: Tensor) -> Tensor:
        start, stop = next(starts)
        return mask[:, start:stop]

    found = solve(weight, x.T @ x, spans, choose, damping=0)
    best = torch.linalg.lstsq(x[:, ~gone], x @ weight.T).solution.T
    assert found[:, gone].count_nonzero() == 0
    assert torch.allclose(found[:, ~gone], best, rtol=1e-6)


def test_spans_only_decide_when_masks_are_chosen() -> None:
    weight, x, _ = problem()
    mask = torch.rand(16, 32, generator=torch.Generator().manual_seed(3)) < 0.5
    found = []
    for length in (1, 5, 32):
        spans = runs(32, 1, length)
        parts = iter([mask[:, start:stop] for start, stop in spans])
        found.append(solve(weight, x.T @ x, spans, lambda _, parts=parts: next(parts)))
    assert torch.allclose(found[0], found[1]) and torch.allclose(found[0], found[2])
    assert torch.equal(found[0] == 0, mask)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("goal", ["half", "2:4"])
def test_error_is_less_than_that_of_wanda_and_that_less_than_that_of_magnitude(goal: str, seed: int) -> None:
    weight, seen, unseen = problem(seed=seed)

    def masked(scores: Tensor, rows: bool) -> Tensor:
        if goal == "2:4":
            return weight.masked_fill(nm_mask(scores, 2, 4), 0)
        return weight.masked_fill(lowest_of_rows(scores, 0.5) if rows else lowest(scores, scores.numel() // 2), 0)

    spans = runs(32, 1, 4 if goal == "2:4" else 32)
    sparsegpt = solve(weight, seen.T @ seen, spans, lambda s: nm_mask(s, 2, 4) if goal == "2:4" else lowest(s, s.numel() // 2))
    found = [sparsegpt, masked(wanda(weight, seen.square().mean(0)), True), masked(weight.abs(), False)]
    assert [int((w == 0).sum()) for w in found] == [256, 256, 256]
    for x in (seen, unseen):
        errors = [error(weight, w, x) for w in found]
        assert errors[0] < errors[1] < errors[2]


def test_zeros_from_before_stay_and_count() -> None:
    weight, x, _ = problem()
    zero = torch.rand(16, 32, generator=torch.Generator().manual_seed(3)) < 0.3
    found = solve(weight.masked_fill(zero, 0), x.T @ x, runs(32, 1, 8), lambda s: lowest(s, s.numel() // 2), zero=zero)
    assert found[zero].count_nonzero() == 0
    assert int((found == 0).sum()) == 256


def test_inputs_that_are_dependent_or_zero_are_no_error() -> None:
    weight, x, _ = problem()
    x[:, 3], x[:, 5] = 0, x[:, 4]
    for hessian in (x.T @ x, torch.zeros(32, 32, dtype=torch.float64)):
        found = solve(weight, hessian, [(0, 32)], lambda s: lowest(s, s.numel() // 2), damping=0)
        assert torch.isfinite(found).all() and int((found == 0).sum()) == 256


def test_factor_is_that_of_the_inverse() -> None:
    _, x, _ = problem()
    hessian = x.T @ x
    factor = inverse_cholesky(hessian, 0)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.T @ factor @ hessian, torch.eye(32, dtype=torch.float64), atol=1e-6)
