"""Channels per module before and after, for the report, from the manifest of a checkpoint."""

import json
from pathlib import Path

from torch import nn

from paredown.core.report import Width

_SIDES = ((0, "out"), (1, "in"))


def widths(model: nn.Module, checkpoint: str) -> tuple[Width, ...]:
    """One row per weight and side that was cut, in the model's order; none for a checkpoint that wasn't pruned."""
    kept = json.loads((Path(checkpoint) / "manifest.json").read_text())["kept"] or {}
    rows: list[Width] = []
    for name, parameter in model.named_parameters():
        for dimension, side in _SIDES:
            indices = kept.get(name, {}).get(str(dimension))
            if indices is not None and parameter.dim() > 1:
                rows.append(Width(name.removesuffix(".weight"), side, parameter.shape[dimension], len(indices)))
    return tuple(rows)
