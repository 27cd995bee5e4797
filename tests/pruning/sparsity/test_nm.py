import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.pruning.sparsity.nm import nm_mask, parse, runs


def test_two_of_four_stay() -> None:
    assert nm_mask(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 2, 4).tolist() == [[True, False, False, True]]


def test_of_equal_scores_the_lower_index_stays() -> None:
    assert nm_mask(torch.ones(1, 4), 2, 4).tolist() == [[False, False, True, True]]


def test_last_inputs_count_as_if_zeros_followed() -> None:
    one, three = nm_mask(torch.ones(1, 5), 2, 4), nm_mask(torch.tensor([[1.0, 1, 1, 1, 5, 0, 6]]), 2, 4)
    assert one.tolist() == [[False, False, True, True, False]]
    assert three.tolist() == [[False, False, True, True, False, True, False]]


@settings(deadline=None, max_examples=30)
@given(columns=st.integers(1, 20), pattern=st.sampled_from(["2:4", "4:8"]), seed=st.integers(0, 99))
def test_no_run_keeps_more_than_n_and_the_highest_stay(columns: int, pattern: str, seed: int) -> None:
    n, m = parse(pattern)
    scores = torch.rand(3, columns, generator=torch.Generator().manual_seed(seed))
    mask = nm_mask(scores, n, m)
    for start in range(0, columns, m):
        run, gone = scores[:, start : start + m], mask[:, start : start + m]
        assert ((~gone).sum(1) == min(n, run.shape[1])).all()
        assert not gone.any() or (run.masked_fill(~gone, 0).amax(1) <= run.masked_fill(gone, 1).amin(1)).all()


def test_runs_end_where_a_kernel_position_ends() -> None:
    assert runs(6, 2, 4) == [(0, 4), (4, 6), (6, 10), (10, 12)]
