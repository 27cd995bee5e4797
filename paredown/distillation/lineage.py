"""Which layer of the student corresponds to which of the teacher, and which channels.

A student that was cut from the teacher carries a manifest: the same name is the same layer, and the channels that it kept are
known exactly, so hidden states are compared like with like, without adapters. Layers that the manifest rescales are left out.
Of a student that is a graph see `graph_lineage.py`, for any other `pairing.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paredown.core.errors import TaskError
from paredown.graph.manifest import Manifest, manifest_of


@dataclass(frozen=True)
class Pair:
    """Two modules whose outputs are to be alike.

    kept: of the teacher's channels those that the student has, in its order; None: all of them, or (where `exact` is false)
    unknown. axis: where the channels of the output lie. exact: known from the manifest, not guessed.
    """

    student: str
    teacher: str
    kept: tuple[int, ...] | None = None
    axis: int = 1
    exact: bool = True

    def __str__(self) -> str:
        channels = f", {len(self.kept)} kept channels" if self.kept is not None else ""
        return f"{self.student} <- {self.teacher}{channels}"

    def like(self, teacher: Tensor) -> Tensor:
        """Of the teacher's features the channels that the student has."""
        if self.kept is None:
            return teacher
        return teacher.index_select(self.axis, torch.tensor(self.kept, device=teacher.device))


def lineage(teacher: nn.Module, student: nn.Module) -> list[Pair]:
    """A pair for every layer with a weight that both have, in the order of `named_modules`.

    teacher: the model that the student was cut from, or one that it was cut from in its turn. A student that was never cut
    and has the teacher's class and widths (quantized, sparse) pairs with all channels.
    Raises TaskError where the student is no descendant of the teacher: other layers, or other widths than the manifest tells.
    """
    others = dict(teacher.named_modules())
    before, after = (manifest_of(model) or Manifest() for model in (teacher, student))
    check_layers(layers_of(teacher), layers_of(student), after)
    pairs: list[Pair] = []
    for name, module in student.named_modules():
        other, place = others.get(name), _channels(module)
        if other is None or place is None or type(other) is not type(module):
            continue
        weight, (dimension, axis) = f"{name}.weight" if name else "weight", place
        if dimension in after.scaled.get(weight, {}):
            continue
        kept = relative_indices(before.kept.get(weight, {}).get(dimension), after.kept.get(weight, {}).get(dimension), name)
        check_widths(name, module.get_parameter("weight"), other.get_parameter("weight"), kept, dimension)
        pairs.append(Pair(name, name, kept, axis))
    if not pairs:
        raise stranger("no layer in common")
    return pairs


def layers_of(model: nn.Module) -> set[str]:
    """Names of the layers whose weight is a matrix, norms left out."""
    return {name for name, module in model.named_modules() if _channels(module) and module.get_parameter("weight").dim() > 1}


def check_layers(teacher: set[str], student: set[str], manifest: Manifest) -> None:
    """Both have the same layers but for norms (which are folded) and what was dropped: a ResNet-20 isn't part of a ResNet-56."""
    gone = tuple(f"{part.module}." for part in manifest.dropped)
    odd = sorted(name for name in teacher ^ student if not f"{name}.".startswith(gone))
    if odd and student:
        raise stranger(f"{odd[0]}, which only one of them has")


def _channels(module: nn.Module) -> tuple[int, int] | None:
    """(dimension of the weight, axis of the output) that hold a layer's output channels; None where we don't know them."""
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return None
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() | _BatchNorm() | nn.GroupNorm():
            return 0, 1
        case nn.Linear():
            return 0, -1
        case nn.LayerNorm() | nn.RMSNorm() if len(module.normalized_shape) == 1:
            return 0, -1
        case nn.Embedding():
            return 1, -1
        case _:
            return None


def relative(before: Manifest, after: Manifest) -> Manifest:
    """The cut that made a student of a teacher, by the manifests of both (of the teacher, the student): the indices alone.

    Raises TaskError where the student has what the teacher lacks.
    """
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dimensions in after.kept.items():
        for dimension, indices in dimensions.items():
            found = relative_indices(before.kept.get(name, {}).get(dimension), indices, name)
            if found is not None:
                kept.setdefault(name, {})[dimension] = found
    return Manifest(kept)


def relative_indices(before: Sequence[int] | None, after: Sequence[int] | None, name: str) -> tuple[int, ...] | None:
    """The student's indices, which are those of the model that was never cut, as positions among the teacher's."""
    if after is None or before is None:
        return None if after is None else tuple(after)
    place = {index: position for position, index in enumerate(before)}
    if not set(after) <= set(place):
        raise stranger(f"channels of {name} that the teacher doesn't have")
    found = tuple(place[index] for index in after)
    return None if len(found) == len(before) else found


def check_widths(name: str, student: Tensor, teacher: Tensor, kept: tuple[int, ...] | None, dimension: int) -> None:
    """Weights have the widths that the manifest tells. kept: indices of the teacher's."""
    ours, theirs = student.shape[dimension], teacher.shape[dimension]
    if ours != (theirs if kept is None else len(kept)) or (kept is not None and max(kept) >= theirs):
        raise stranger(f"{name} with {ours} of {theirs} channels")


def stranger(got: str) -> TaskError:
    return TaskError(
        "lineage needs a student that was cut from the teacher", got=got, remedy="propose pairs of layers for independent models"
    )
