"""What a target says of a sample: a class, how much of each class, or numbers."""

from torch import Tensor

_ROUNDED = 1e-3  # of a sum of shares, in half precision too


def are_shares(target: Tensor, axis: int) -> bool:
    """Whether it says how much of each class, which lie on `axis`, a sample is, as mixed images have it."""
    return bool((target >= 0).all()) and bool((target.sum(axis) - 1).abs().max() < _ROUNDED)
