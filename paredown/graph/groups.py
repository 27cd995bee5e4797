"""Dependency groups of a model: trace it, propagate labels, freeze what must stay, try the cuts, and collect what is left."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from paredown.core.report import Barrier
from paredown.graph.attributes import find_attributes
from paredown.graph.collect import Extent, Group, Groups, Keep, Slice, collect
from paredown.graph.couple import joined, shared_counts, split_evenly
from paredown.graph.literals import literal_atoms
from paredown.graph.operation import Knowledge, short_name
from paredown.graph.places import Dimension, Places
from paredown.graph.probe import Findings, probe
from paredown.graph.propagate import propagate
from paredown.graph.statistics import uncountable
from paredown.graph.trace import Dynamic, place_of, source_line, trace
from paredown.graph.twin import outputs
from paredown.task.batches import Inputs, apply_tensors, batch_size, call, evaluating, first_samples, unfused

__all__ = ["Dimension", "Extent", "Group", "Groups", "Keep", "Slice", "dependency_groups"]

_UNCUTTABLE = (
    "the class can't run, or disagrees with the masked original, when this is cut: "
    "a width is a literal in forward, or an attribute that we don't know, or what only training runs takes it"
)
_RANDOM = "the model's output is random in evaluation mode, so that no cut of it can be compared with the masked original"
_UNREAD = "nothing reads it in evaluation mode, for these example inputs; a cut must leave what it takes in training mode"
_UNGROUNDED = "it takes statistics that can't be compared with those over the kept indices"


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
    known.attributes.extend(find_attributes(known))
    _ground(known, model, inputs)
    unread = _unread(known, model)
    groups = collect(known)
    groups = replace(groups, coupled=joined((*split_evenly(known, groups), *shared_counts(known, groups))))
    found = probe(model, groups, inputs, literal_atoms(known), training=bool(unread))
    if found == Findings((), groups.coupled):
        return groups
    _freeze(known, [groups.groups[g] for g in found.uncuttable], _RANDOM if _is_random(model, inputs) else _UNCUTTABLE)
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


def _ground(known: Knowledge, model: nn.Module, inputs: Inputs) -> None:
    """Freezes statistics that a masked run couldn't take: of indices that no weight has, or in calls that can't be counted."""
    _freeze_unread(known)
    if not known.statistics:
        return

    def run() -> None:
        with evaluating(model), unfused(), torch.no_grad():
            call(model, apply_tensors(first_samples(inputs, 2), torch.clone))

    counts = Counter(name for name, _ in known.calls.values())
    odd = uncountable(run, counts, {name for (name, _), _, _ in known.statistics})
    places = Places.of(known)
    nodes = {numbered: node for node, numbered in known.calls.items()}
    for counted, _, labels in known.statistics:
        name, _ = counted
        if (name in odd or not places.have(known.labels.canonical(labels))) and known.labels.freeze(labels):
            known.barriers[Barrier(f"aten.{name}", place_of(nodes[counted]), _UNGROUNDED)] = None


def _unread(known: Knowledge, model: nn.Module) -> list[str]:
    """Modules with parameters that nothing reads in evaluation mode, as auxiliary heads; each gets a barrier."""
    read = {*known.origins.values()}
    idle = [name for name, p in model.named_parameters() if p.is_floating_point() and name not in read]
    found = [*dict.fromkeys(name.rpartition(".")[0] for name in idle)]
    known.barriers.update({Barrier("unread", name, _UNREAD): None for name in found})
    return found


def _freeze_unread(known: Knowledge) -> None:
    """What no slice of a parameter reads, as positions beyond this input's length, another input may."""
    for node in known.origins:
        slices = [user for user in node.users if short_name(user) == "slice"]
        if len(slices) < len(node.users):
            continue
        for dimension, labels in enumerate(known.dims[node][0]):
            read = [x for user in slices if (x := known.dims[user][0][dimension]) is not None]
            if labels is not None:
                known.labels.freeze(np.setdiff1d(labels, np.concatenate([labels[:0], *read])))


def _is_random(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the model gives the same inputs different outputs, in evaluation mode."""
    with evaluating(model):
        one, other = (outputs(model, inputs, torch.get_default_dtype()) for _ in range(2))
    return not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _freeze(known: Knowledge, groups: Sequence[Group], reason: str) -> None:
    """Each barrier stands at the group's module, and the line that first reads one of its parameters."""
    reads = {name: user for node, name in reversed(known.origins.items()) for user in reversed([*node.users])}
    for group in groups:
        known.labels.freeze_atoms(group.atoms)
        line = next((line for s in group.slices if s.tensor in reads and (line := source_line(reads[s.tensor]))), "")
        known.barriers[Barrier("forward", f"{group.name} ({line})" if line else group.name, reason)] = None
