"""The manifest: which indices of which parameters and buffers a pruned model kept, relative to the original model."""

import itertools
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from paredown.core.errors import CheckpointError

_ATTRIBUTE = "_paredown_manifest"


@dataclass(frozen=True)
class Manifest:
    """kept: {name of a parameter or buffer: {dimension: the indices kept, ascending}}; what is not named is whole.
    A tied tensor stands once, under the first of its names. Indices are those of the original model.
    """

    kept: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)

    def then(self, later: "Manifest") -> "Manifest":
        """This cut, then `later`, whose indices are relative to what this one left; as one manifest of the original."""
        result = {name: dict(dimensions) for name, dimensions in self.kept.items()}
        for name, dimensions in later.kept.items():
            for dimension, indices in dimensions.items():
                before = self.kept.get(name, {}).get(dimension)
                after = indices if before is None else tuple(before[i] for i in indices)
                result.setdefault(name, {})[dimension] = after
        return Manifest(result)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `{"kept": {name: {"0": [indices]}}}`."""
        return {"kept": {name: {str(d): list(i) for d, i in dims.items()} for name, dims in self.kept.items()}}

    @classmethod
    def from_dict(cls, data: Any) -> "Manifest":
        """The inverse. Raises CheckpointError where the data has another form."""
        if not isinstance(data, dict) or set(data) != {"kept"} or not isinstance(data["kept"], dict):
            raise _malformed("a mapping with one key, kept")
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for name, dimensions in data["kept"].items():
            if not isinstance(name, str) or not isinstance(dimensions, dict):
                raise _malformed(f"a mapping of dimensions for {name!r}")
            kept[name] = {_dimension(name, d): _indices(name, indices) for d, indices in dimensions.items()}
        return cls(kept)


def manifest_of(model: nn.Module) -> Manifest | None:
    """The manifest of a pruned model; None for one that was never cut."""
    value = getattr(model, _ATTRIBUTE, None)
    return value if isinstance(value, Manifest) else None


def attach_(model: nn.Module, manifest: Manifest) -> nn.Module:
    """Records on the model itself how it was cut; survives copy.deepcopy, stands in no state_dict."""
    setattr(model, _ATTRIBUTE, manifest)
    return model


def _dimension(name: str, text: Any) -> int:
    if not str(text).isdigit():
        raise _malformed(f"whole numbers as dimensions of {name!r}")
    return int(text)


def _indices(name: str, values: Any) -> tuple[int, ...]:
    valid = isinstance(values, list) and values and all(type(i) is int and i >= 0 for i in values)
    if not valid or any(a >= b for a, b in itertools.pairwise(values)):
        raise _malformed(f"ascending indices for {name!r}")
    return tuple(values)


def _malformed(rule: str) -> CheckpointError:
    return CheckpointError(f"a manifest must hold {rule}", remedy="save the checkpoint again; its manifest was changed by hand")
