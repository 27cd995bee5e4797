"""Checks of single fields of a step config: each raises RecipeError with rule, value and remedy."""

from typing import Any, get_args

from paredown.core.errors import RecipeError


def choice(name: str, value: object, options: Any) -> None:
    """value is one of a Literal's options."""
    if value not in get_args(options):
        known = ", ".join(get_args(options))
        raise RecipeError(f"{name} must be one of {known}", got=repr(value), remedy=f'write {name}="{get_args(options)[0]}"')


def positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise RecipeError(f"{name} must be a positive number", got=value, remedy="leave it out for the default")


def within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{name} must be in [{low}, {high}]", got=value, remedy="leave it out for the default")


def count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{name} must be a whole number of at least 1", got=value, remedy=f"write {name}=1")


def fraction(name: str, value: float, remedy: str) -> None:
    """In (0, 1), both ends excluded."""
    if not 0 < value < 1:
        raise RecipeError(
            f"{name} must be in (0, 1)", got=value, remedy=f"did you mean {value / 100:g}?" if 1 < value < 100 else remedy
        )
