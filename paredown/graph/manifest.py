"""The manifest: which indices of which parameters and buffers a pruned model kept, relative to the original model.

Three things go with the indices: factors, where a class would otherwise compute another attention scale from the smaller width,
whole numbers that a class keeps as attributes (`num_heads`), and what folding the gates cost by which a cut was chosen.
"""

import itertools
import math
import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from paredown.core.errors import CheckpointError
from paredown.graph.dropped import Dropped

_RANKS = 16  # more dimensions than any tensor of a model has
_ATTRIBUTE = "_paredown_manifest"
MANIFEST_KEYS = ("kept", "scaled", "attributes", "dropped", "folds")
_ENTRY = re.compile(r"[^\W\d]\w*(\.\d+)?")  # an attribute, or an entry of a tuple or list


@dataclass(frozen=True)
class Manifest:
    """kept: {name of a parameter or buffer: {dimension: the indices kept, ascending}}; what is not named is whole.
    A tied tensor stands once, under the first of its names. Indices are those of the original model.
    scaled: {name: {dimension: a factor for each index kept}}. attributes: {module: {attribute: its value in the cut model}};
    entry 0 of a tuple or list `sizes` is called "sizes.0". dropped: modules of residual branches that were dropped whole.
    folds: (mean objective with gates, and once they were folded into the weights), of each cut that was chosen by learned gates.
    """

    kept: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    scaled: dict[str, dict[int, tuple[float, ...]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    folds: tuple[tuple[float, float], ...] = ()

    def then(self, later: "Manifest") -> "Manifest":
        """This cut, then `later`, whose indices are relative to what this one left; as one manifest of the original."""
        result = {name: dict(dimensions) for name, dimensions in self.kept.items()}
        for name, dimensions in later.kept.items():
            for dimension, indices in dimensions.items():
                before = self.kept.get(name, {}).get(dimension)
                after = indices if before is None else tuple(before[i] for i in indices)
                result.setdefault(name, {})[dimension] = after
        modules = dict.fromkeys((*self.attributes, *later.attributes))
        attributes = {m: self.attributes.get(m, {}) | later.attributes.get(m, {}) for m in modules}
        dropped, folds = (*self.dropped, *later.dropped), (*self.folds, *later.folds)
        return Manifest(result, self._scaled_then(later), attributes, dropped, folds)

    def beside(self, other: "Manifest") -> "Manifest":
        """This cut and `other`, both relative to the same model, as one; they cut different dimensions of it."""
        names = dict.fromkeys((*self.kept, *other.kept))
        scaled = dict.fromkeys((*self.scaled, *other.scaled))
        modules = dict.fromkeys((*self.attributes, *other.attributes))
        return Manifest(
            {name: self.kept.get(name, {}) | other.kept.get(name, {}) for name in names},
            {name: self.scaled.get(name, {}) | other.scaled.get(name, {}) for name in scaled},
            {m: self.attributes.get(m, {}) | other.attributes.get(m, {}) for m in modules},
            (*self.dropped, *other.dropped),
            (*self.folds, *other.folds),
        )

    def _scaled_then(self, later: "Manifest") -> dict[str, dict[int, tuple[float, ...]]]:
        """Of the factors so far those whose indices stay, times the later ones."""
        result: dict[str, dict[int, tuple[float, ...]]] = {}
        for name, dimensions in self.scaled.items():
            for d, factors in dimensions.items():
                kept = later.kept.get(name, {}).get(d)
                result.setdefault(name, {})[d] = factors if kept is None else tuple(factors[i] for i in kept)
        for name, dimensions in later.scaled.items():
            for d, factors in dimensions.items():
                before = result.setdefault(name, {}).get(d)
                result[name][d] = factors if before is None else tuple(a * b for a, b in zip(before, factors, strict=True))
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `{"kept": {name: {"0": [indices]}}}`; the rest only where there is any."""
        data: dict[str, Any] = {"kept": {name: {str(d): list(i) for d, i in dims.items()} for name, dims in self.kept.items()}}
        if self.scaled:
            data["scaled"] = {name: {str(d): list(f) for d, f in dims.items()} for name, dims in self.scaled.items()}
        if self.attributes:
            data["attributes"] = self.attributes
        if self.dropped:
            data["dropped"] = [_described(part) for part in self.dropped]
        return data | ({"folds": [list(pair) for pair in self.folds]} if self.folds else {})

    @classmethod
    def from_dict(cls, data: Any) -> "Manifest":
        """The inverse. Raises CheckpointError where the data has another form."""
        if not isinstance(data, dict) or "kept" not in data or not set(data) <= {*MANIFEST_KEYS}:
            raise _malformed("a mapping with the key kept, and maybe scaled, attributes, dropped and folds")
        kept = {
            name: {d: _indices(name, v) for d, v in dims.items()} for name, dims in _by_dimension(data["kept"], "kept").items()
        }
        scaled = {
            name: {d: _factors(name, v) for d, v in dims.items()}
            for name, dims in _by_dimension(data.get("scaled", {}), "scaled").items()
        }
        attributes, dropped = _attributes(data.get("attributes", {})), _dropped(data.get("dropped", []))
        return cls(kept, scaled, attributes, dropped, _folds(data.get("folds", [])))


def manifest_of(model: nn.Module) -> Manifest | None:
    """The manifest of a pruned model; None for one that was never cut."""
    value = getattr(model, _ATTRIBUTE, None)
    return value if isinstance(value, Manifest) else None


def folds_of(model: nn.Module) -> tuple[tuple[float, float], ...]:
    """What folding gates cost, of all its cuts."""
    manifest = manifest_of(model)
    return () if manifest is None else manifest.folds


def attach_(model: nn.Module, manifest: Manifest) -> nn.Module:
    """Records on the model itself how it was cut; survives copy.deepcopy, stands in no state_dict."""
    setattr(model, _ATTRIBUTE, manifest)
    return model


def _by_dimension(data: Any, key: str) -> dict[str, dict[int, Any]]:
    """{name: {dimension: anything}}."""
    if not isinstance(data, dict):
        raise _malformed(f"a mapping under {key}")
    for name, dimensions in data.items():
        if not isinstance(name, str) or not isinstance(dimensions, dict):
            raise _malformed(f"a mapping of dimensions for {name!r}")
        if not all(str(d).isdigit() for d in dimensions):
            raise _malformed(f"whole numbers as dimensions of {name!r}")
    return {name: {int(d): value for d, value in dimensions.items()} for name, dimensions in data.items()}


def _factors(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(type(f) in {int, float} and 0 < f < math.inf for f in values):
        raise _malformed(f"positive factors for {name!r}")
    return tuple(float(f) for f in values)


def _attributes(data: Any) -> dict[str, dict[str, int]]:
    valid = isinstance(data, dict) and all(
        isinstance(values, dict) and all(_ENTRY.fullmatch(str(name)) and type(v) is int and v > 0 for name, v in values.items())
        for values in data.values()
    )
    if not valid:
        raise _malformed("positive whole numbers as attributes")
    return {str(module): dict(values) for module, values in data.items()}


def _described(part: Dropped) -> dict[str, Any]:
    return {"module": part.module, "outputs": list(part.outputs), "several": part.several, "whole": part.whole}


def _dropped(data: Any) -> tuple[Dropped, ...]:
    valid = isinstance(data, list) and all(
        isinstance(part, dict)
        and set(part) == {"module", "outputs", "several", "whole"}
        and isinstance(part["module"], str)
        and isinstance(part["outputs"], list)
        and all(rank is None or (type(rank) is int and 0 <= rank < _RANKS) for rank in part["outputs"])
        and type(part["several"]) is bool
        and type(part["whole"]) is bool
        for part in data
    )
    if not valid:
        raise _malformed("module, outputs, several and whole for each module that was dropped")
    return tuple(Dropped(part["module"], tuple(part["outputs"]), part["several"], part["whole"]) for part in data)


def _folds(data: Any) -> tuple[tuple[float, float], ...]:
    valid = isinstance(data, list) and all(isinstance(pair, list) and len(pair) == 2 and all(map(_finite, pair)) for pair in data)
    if not valid:
        raise _malformed("two numbers for each folding of gates")
    return tuple((float(before), float(after)) for before, after in data)


def _finite(value: Any) -> bool:
    return type(value) in {int, float} and math.isfinite(value)


def _indices(name: str, values: Any) -> tuple[int, ...]:
    valid = isinstance(values, list) and values and all(type(i) is int and i >= 0 for i in values)
    if not valid or any(a >= b for a, b in itertools.pairwise(values)):
        raise _malformed(f"ascending indices for {name!r}")
    return tuple(values)


def _malformed(rule: str) -> CheckpointError:
    return CheckpointError(f"a manifest must hold {rule}", remedy="save the checkpoint again; its manifest was changed by hand")
