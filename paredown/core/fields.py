"""Checks of single fields of a step config: each raises RecipeError with rule, value and remedy."""

from typing import Any, get_args

from paredown.core.errors import RecipeError


def choice(name: str, value: object, options: Any) -> None:
    """value is one of a Literal's options."""
    if not isinstance(value, str) or value not in get_args(options):
        known = ", ".join(get_args(options))
        raise RecipeError(f"{name} must be one of {known}", got=repr(value), remedy=f'write {name}="{get_args(options)[0]}"')


def number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(f"{name} must be a number", got=repr(value), remedy="write it as a plain int or float")


def instance(name: str, value: object, *classes: type) -> None:
    """value is of one of these classes."""
    if not isinstance(value, classes):
        wanted = " or ".join(cls.__name__ for cls in classes)
        raise RecipeError(f"{name} must be a {wanted}", got=repr(value), remedy="leave it out for the default")


def names(name: str, value: object, *, of: str = "module names", example: str = "head") -> None:
    """A tuple or list of strings; a single string would be taken letter by letter."""
    if not isinstance(value, tuple | list) or not all(isinstance(each, str) for each in value):
        raise RecipeError(f"{name} must be a tuple of {of}", got=repr(value), remedy=f'write {name}=("{example}",)')


def positive(name: str, value: float) -> None:
    number(name, value)
    if not 0 < value < float("inf"):
        raise RecipeError(f"{name} must be a positive number", got=value, remedy="leave it out for the default")


def within(name: str, value: float, low: float, high: float) -> None:
    number(name, value)
    if not low <= value <= high:
        raise RecipeError(f"{name} must be in [{low}, {high}]", got=value, remedy="leave it out for the default")


def fractions(name: str, value: object) -> None:
    """A mapping of module names to numbers in [0, 1]."""
    if not isinstance(value, dict) or not all(isinstance(module, str) for module in value):
        raise RecipeError(f"{name} must map module names to fractions", got=repr(value), remedy=f'write {name}={{"layer4": 0.5}}')
    for module, each in value.items():
        within(f"{name}[{module!r}]", each, 0, 1)


def count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecipeError(f"{name} must be a whole number of at least 1", got=value, remedy=f"write {name}=1")


def fraction(name: str, value: float, remedy: str) -> None:
    """In (0, 1), both ends excluded."""
    number(name, value)
    if not 0 < value < 1:
        raise RecipeError(
            f"{name} must be in (0, 1)", got=value, remedy=f"did you mean {value / 100:g}?" if 1 < value < 100 else remedy
        )


def seed_number(value: object) -> None:
    """What every source of random numbers takes."""
    if isinstance(value, bool) or not isinstance(value, int) or not abs(value) < 2**63:
        raise RecipeError("seed must be a whole number of at most 63 bits", got=repr(value), remedy="write seed=0")
