"""Modules that a training leaves as they are, by name."""

from torch import nn

from paredown.core.errors import RecipeError
from paredown.core.training import Training


def require_modules(model: nn.Module, training: Training) -> tuple[str, ...]:
    """What the training freezes. Raises RecipeError for a name that the model lacks."""
    known = {name for name, _ in model.named_modules()}
    unknown = [name for name in training.frozen if name not in known]
    if unknown:
        raise RecipeError(
            "freeze must name modules of the model", got=unknown[0], remedy="see model.named_modules() for the names"
        )
    return training.frozen
