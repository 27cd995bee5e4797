"""Random importance: the control that every criterion has to beat. Scores are uniform in [0, 1), the same for the same seed."""

import torch
from torch import Tensor

from paredown.graph.groups import Group


def random(group: Group, generator: torch.Generator) -> Tensor:
    """(size,) float64."""
    return torch.rand(group.size, generator=generator, dtype=torch.float64)
