"""How long a step may train: a count of epochs, steps or seconds, written "3 epochs", "200 steps" or "60 s"."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Self

from pydantic_core import CoreSchema, core_schema

from paredown.core.errors import BudgetError

Unit = Literal["epochs", "steps", "seconds"]
_UNITS: dict[str, Unit] = {
    "epoch": "epochs", "epochs": "epochs", "step": "steps", "steps": "steps",
    "s": "seconds", "sec": "seconds", "second": "seconds", "seconds": "seconds",
}  # fmt: skip
_SECONDS = {"min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0}


@dataclass(frozen=True)
class Effort:
    """`amount` of `unit`. A step that trains stops after it; the learning-rate schedule spans exactly it."""

    amount: float
    unit: Unit = "epochs"

    def __post_init__(self) -> None:
        if not isinstance(self.amount, int | float) or not 0 < self.amount < float("inf"):
            raise BudgetError("an effort must be a positive amount", got=self.amount, remedy='write "3 epochs" or "60 s"')
        if self.unit not in ("epochs", "steps", "seconds"):
            raise BudgetError(
                "an effort's unit must be epochs, steps or seconds", got=self.unit, remedy='write "3 epochs" or "60 s"'
            )

    @classmethod
    def parse(cls, value: "str | Effort") -> Self | "Effort":
        """`"3 epochs"`, `"200 steps"`, `"60 s"`, `"5 min"`; an Effort passes through."""
        if isinstance(value, Effort):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", str(value).lower())
        unit = match.group(2) if match else ""
        if match is None or (unit not in _UNITS and unit not in _SECONDS):
            raise BudgetError(
                "an effort is a number and a unit (epochs, steps, s, min, h)",
                got=repr(value),
                remedy='write "3 epochs" or "60 s"',
            )
        amount = float(match.group(1))
        return cls(amount, _UNITS[unit]) if unit in _UNITS else cls(amount * _SECONDS[unit], "seconds")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """Written as text, "3 epochs", wherever a recipe holds one."""
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=core_schema.to_string_ser_schema())

    def __str__(self) -> str:
        amount = f"{Decimal(repr(float(self.amount))):f}".removesuffix(".0")  # every digit: it is read back
        return f"{amount} {self.unit}"
