"""Dependency groups of a model: trace it, propagate labels, freeze what must stay, try the cuts, and collect what is left."""

from collections.abc import Collection, Sequence

import numpy as np
from torch import nn

from paredown.core.report import Barrier
from paredown.graph.collect import Dimension, Extent, Group, Groups, Keep, Slice, collect
from paredown.graph.operation import Knowledge
from paredown.graph.probe import probe
from paredown.graph.propagate import propagate
from paredown.graph.trace import Dynamic, trace
from paredown.task.batches import Inputs, batch_size

__all__ = ["Dimension", "Extent", "Group", "Groups", "Keep", "Slice", "dependency_groups"]

_UNCUTTABLE = (
    "the class can't run, or disagrees with the masked original, when this is cut: "
    "a width is a literal in forward, or an attribute that we don't know"
)


def dependency_groups(
    model: nn.Module, inputs: Inputs, *, dynamic: Dynamic | None = None, protect: Collection[str] = ()
) -> Groups:
    """What may be removed from `model`, and the barriers that keep the rest. The model is not touched.

    inputs: at least 2 samples. protect: names of modules of which no parameter may lose an index.
    Every group has been tried: part of it was cut, and the class ran and equalled the masked original.
    Raises TraceError where torch.export can't follow the model.
    """
    known = propagate(trace(model, inputs, dynamic), model, batch_size(inputs))
    _protect(model, known, protect)
    groups = collect(known)
    found = probe(model, groups, inputs)
    _freeze(known, [groups.groups[g] for g in found.uncuttable])
    coupled = [{atom for g in together for atom in groups.groups[g].atoms} for together in found.coupled]
    return collect(known, coupled)


def _protect(model: nn.Module, known: Knowledge, protect: Collection[str]) -> None:
    """Freezes every dimension of every parameter and buffer of the named modules, under whichever name they are tied."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for module in protect:
        prefix = f"{module}." if module else ""
        inside = {id(tensor) for name, tensor in tensors if name.startswith(prefix)}
        names = {name for name, tensor in tensors if id(tensor) in inside}
        nodes = [node for node, name in known.origins.items() if name in names]
        arrays = [labels for node in nodes for labels in known.dims[node][0] if labels is not None]
        if arrays and known.labels.freeze(np.concatenate(arrays)):
            known.barriers[Barrier("protect", module, "protected by the user")] = None


def _freeze(known: Knowledge, groups: Sequence[Group]) -> None:
    for group in groups:
        known.labels.freeze_atoms(group.atoms)
        known.barriers[Barrier("forward", group.name, _UNCUTTABLE)] = None
