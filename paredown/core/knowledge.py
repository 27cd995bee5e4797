"""What a student may learn from a teacher's hidden layers, beside its outputs: one frozen config for each loss.

Each loss is the mean over the pairs of layers that it compares, so that a weight means the same for any number of pairs.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pydantic

from paredown.core.fields import positive, within

Soft = Literal["soft_labels", "logit_mse", "standardized", "dkd", "multi_label", "regression"]
Combine = Literal["mean", "confidence"]

_FORBID = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Hint:
    """The features themselves (FitNets, `losses/hint.py`). Of a student that was cut from the teacher, channel by kept channel;
    of any other, through a 1x1 adapter where widths differ, which is trained along and thrown away.
    """

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 1.0
    kind: Literal["hint"] = "hint"

    def __post_init__(self) -> None:
        positive("weight", self.weight)


@dataclass(frozen=True)
class AttentionTransfer:
    """Where a network looks: squares summed over channels (`losses/attention_transfer.py`). Widths may differ."""

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 10.0
    kind: Literal["attention_transfer"] = "attention_transfer"

    def __post_init__(self) -> None:
        positive("weight", self.weight)


@dataclass(frozen=True)
class Similarity:
    """Which samples of the batch are alike (`losses/similarity.py`). Widths and resolutions may differ."""

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 3000.0
    kind: Literal["similarity"] = "similarity"

    def __post_init__(self) -> None:
        positive("weight", self.weight)


@dataclass(frozen=True)
class Relational:
    """Distances between samples, and angles between three (`losses/relational.py`), of features averaged over their positions.

    angle: weight of the angles beside that of the distances, which is 1; 0 leaves them out.
    """

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 25.0
    angle: float = 2.0
    kind: Literal["relational"] = "relational"

    def __post_init__(self) -> None:
        positive("weight", self.weight)
        within("angle", self.angle, 0, 1e3)


Feature = Hint | AttentionTransfer | Similarity | Relational
