"""How a long step tells how far it is: `progress(label, fraction)`, fraction in [0, 1]."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, float], None]


def silent(_label: str, _fraction: float) -> None:
    """The default: says nothing."""
