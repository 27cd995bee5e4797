import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.pruning.sparsity.choose import lowest, lowest_of_all, lowest_of_rows


def test_of_equal_scores_the_higher_index_goes() -> None:
    assert lowest(torch.ones(4), 2).tolist() == [False, False, True, True]
    assert lowest(torch.tensor([1.0, 0.0, 1.0]), 2).tolist() == [False, True, True]


def test_none_and_all_can_be_asked_for() -> None:
    assert not lowest(torch.rand(3), 0).any()
    assert lowest(torch.rand(3), 3).all()


def test_all_tensors_are_ranked_together() -> None:
    masks = lowest_of_all([torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])], 0.5)
    assert [mask.tolist() for mask in masks] == [[[False, False]], [True, True]]


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 7), columns=st.integers(1, 9), ratio=st.floats(0.01, 0.99))
def test_rows_lose_equally_many_and_the_whole_has_the_ratio(rows: int, columns: int, ratio: float) -> None:
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))
    mask = lowest_of_rows(scores, ratio)
    counts = mask.sum(1)
    assert int(counts.max() - counts.min()) <= 1
    assert int(mask.sum()) == round(ratio * columns * rows)
    for row, gone in zip(scores, mask, strict=True):
        assert not gone.any() or gone.all() or row[gone].max() <= row[~gone].min()
