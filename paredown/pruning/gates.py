"""Gates on dependency groups: one factor an atom, by which every consumer of the atom reads it.

    y = W diag(g) x        g (size,): one gate for all places that a group reaches, so a gate at 0 is the atom removed
"static": g = sigmoid(score / temperature). "squeeze_excite": g depends on the sample, as in a squeeze-and-excitation block
(Hu et al., arXiv:1709.01507, eq. 2-3), z (batch, size) being the mean over positions of what the first consumer reads:
    g = sigmoid((score + W2 relu(W1 z)) / temperature)
Both are divided by the most open gate of the group. A batch norm behind a consumer undoes whatever all gates of a group have
in common, so that closing them all alike would cost nothing and say nothing.
While gates close towards a goal (`closing.py`) they are 0 or 1 in the forward pass, and pass gradients on as if they were
sigmoids (straight-through, Bengio et al., arXiv:1308.3432): half-closed gates would cost nothing, weights make up for them.
Those that depend on the sample are 0, or 2 sigmoid(W2 relu(W1 z)) then; the mean of what is in the brackets adds to the score.
Static gates multiply weights, which works for any model whose groups are known; the others multiply what consumers read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from paredown.core.steps import Gate
from paredown.graph.groups import Dimension, Groups
from paredown.graph.labels import Array
from paredown.task.batches import Batch, Inputs, batch_size, call, device_of, evaluating

Objective = Callable[[nn.Module, Batch], Tensor]

_OPEN = 2.0  # the score of every gate at first
_MOMENTUM = 0.1  # of the running mean of what samples add
_REDUCTION = 4  # of the squeeze-excite bottleneck


@dataclass(frozen=True, eq=False)
class Place:
    """One dimension of a parameter at which gates act. owners: (group, atoms, positions), no position twice in an entry."""

    tensor: str
    dimension: int
    size: int
    owners: tuple[tuple[int, Tensor, Tensor], ...]

    def factor(self, gates: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """gates (..., size) of each group -> (..., n): of each index the product of its owners' gates."""
        like = gates[self.owners[0][0]]
        total = like.new_ones((*like.shape[:-1], self.size))
        for group, atoms, positions in self.owners:
            gate = gates[group].index_select(-1, atoms)
            total = total * like.new_ones(total.shape).index_copy(-1, positions, gate)
        return total

    def applied(self, tensor: Tensor, gates: Sequence[Tensor]) -> Tensor:
        """The parameter times its gates."""
        shape = [self.size if d == self.dimension else 1 for d in range(tensor.dim())]
        return tensor * self.factor(gates).to(tensor.dtype).view(shape)


@dataclass(frozen=True, eq=False)
class StraightThrough:
    """Of all atoms, group by group: open (atoms,), 0 or 1; soft (atoms,), by which scores get their gradients."""

    open: Tensor
    soft: Tensor

    @property
    def applied(self) -> Tensor:
        return self.open + (self.soft - self.soft.detach())


class Gates(nn.Module):
    """A model with a gate on every group; the model is trained where it stands, so pass a copy. Call it inside `hooked`.

    inputs: an example, that shows which modules run. scores (atoms,) float64, of all groups, is no parameter: weights and gates
    learn by different rules. It is a buffer, as drift and open are, so it lives as long as what is kept of the training.
    closing: None: gates are soft.
    A group whose consumers aren't all plain convolutions and linear layers, called as modules with the batch on dimension 0,
    has static gates whatever `kind` says.
    """

    scores: Tensor
    drift: Tensor
    open: Tensor

    def __init__(self, model: nn.Module, groups: Groups, kind: Gate, inputs: Inputs) -> None:
        super().__init__()
        device = device_of(model)
        self.sizes = [group.size for group in groups.groups]
        self.body, self.temperature = _Body(model), 1.0
        self.closing: StraightThrough | None = None
        self.register_buffer("scores", torch.full((sum(self.sizes),), _OPEN, dtype=torch.float64, device=device))
        self.register_buffer("drift", torch.zeros_like(self.scores))  # mean of what samples add to the scores
        self.register_buffer("open", torch.zeros_like(self.scores, dtype=torch.bool))  # what stays, once that is chosen
        self.scores.requires_grad_(True)
        found = places(groups, device)
        readers = _by_sample(model, found, len(self.sizes), inputs) if kind == "squeeze_excite" else set[int]()
        self.excite = nn.ModuleDict({str(g): _Excite(self.sizes[g]).to(device) for g in readers})
        self.static = _owned_by(found, set(range(len(self.sizes))) - readers)
        self.dynamic = {_module(place.tensor): place for place in _owned_by(found, readers)}
        self._seen: dict[int, Tensor] = {}
        self._acting = False  # whoever else calls the model meanwhile, to count its MACs for one, meets no gates

    def forward(self, objective: Objective, batch: Batch) -> Tensor:
        """The objective of the gated model on a batch; gates that depend on the sample are kept until the next call."""
        self._seen.clear()
        parameters, gates = dict(self.body.model.named_parameters()), self._static_gates()
        gated: dict[str, Tensor] = {}
        for place in self.static:
            gated[place.tensor] = place.applied(gated.get(place.tensor, parameters[place.tensor]), gates)
        swapped = {f"model.{name}": tensor for name, tensor in gated.items()}
        self._acting = True
        try:
            result: Tensor = functional_call(self.body, swapped, (objective, batch))
        finally:
            self._acting = False
        return result

    def gates(self) -> list[Tensor]:
        """(size,) float64 per group: of the last batch, on its average. Soft ones are in (0, 1], the largest 1."""
        gates = self._static_gates()
        for group, gate in self._seen.items():
            gates[group] = gate.mean(0)
        return gates if self.closing is not None else [gate / gate.max().clamp_min(1e-12) for gate in gates]

    @contextmanager
    def hooked(self) -> Iterator["Gates"]:
        """The gates that depend on the sample are in effect inside; no hook is left behind, whatever happens."""
        modules = dict(self.body.model.named_modules())
        with ExitStack() as stack:
            stack.callback(self.body.model.register_forward_pre_hook(lambda *_: self._seen.clear()).remove)  # other samples
            for path, place in self.dynamic.items():
                handle = modules[path].register_forward_pre_hook(self._hook(place))
                stack.callback(handle.remove)
            yield self

    def by_group(self, atoms: Tensor) -> list[Tensor]:
        """(atoms,) -> (size,) per group."""
        return list(torch.split(atoms, self.sizes))

    def _static_gates(self) -> list[Tensor]:
        if self.closing is not None:
            return self.by_group(self.closing.applied)
        return [value / value.max() for value in self.by_group(torch.sigmoid(self.scores / self.temperature))]

    def _hook(self, place: Place) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        groups = dict.fromkeys(group for group, _, _ in place.owners)

        def gate(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not self._acting:
                return None
            x = args[0]  # (batch, n, ...) of a convolution, (batch, ..., n) of a linear layer
            channel = _channel(module, x)
            for group in groups:
                if len(self._seen.get(group, ())) != len(x):
                    self._seen[group] = self._excited(group, place, x, channel)
            factor = place.factor(self._seen)  # (batch, n)
            shape = [len(x), *(x.shape[d] if d == channel else 1 for d in range(1, x.dim()))]
            return (x * factor.to(x.dtype).view(shape), *args[1:])

        return gate

    def _excited(self, group: int, place: Place, x: Tensor, channel: int) -> Tensor:
        """(batch, size)"""
        pooled = x.mean([d for d in range(1, x.dim()) if d != channel]) if x.dim() > 2 else x  # (batch, n)
        squeezed = pooled.new_zeros(len(x), self.sizes[group])
        for owner, atoms, positions in place.owners:
            if owner == group:
                squeezed = squeezed.index_add(1, atoms, pooled.index_select(1, positions))
        change = self.excite[str(group)](squeezed).double()
        if self.closing is not None:
            if self.training and not self.open.any():
                drift = self.by_group(self.drift)[group]
                drift += _MOMENTUM * (change.detach().mean(0) - drift)
            return self.by_group(self.closing.applied)[group] * 2 * torch.sigmoid(change)
        value = torch.sigmoid((self.by_group(self.scores)[group] + change) / self.temperature)
        return value / value.mean(0).max()


def places(groups: Groups, device: torch.device | str = "cpu") -> list[Place]:
    """Where gates act: the consumers of each group; of a group that none consumes, the parameters that produce it first."""
    at: dict[Dimension, list[int]] = {}
    for g, group in enumerate(groups.groups):
        consumers = [s for s in group.slices if s.consumer]
        module = _module(group.slices[0].tensor)
        for s in consumers or [s for s in group.slices if _module(s.tensor) == module]:
            at.setdefault((s.tensor, s.dimension), []).append(g)
    result = []
    for (tensor, dimension), owners in at.items():
        extent = groups.extents[tensor, dimension]
        parts = [(g, *part) for g, a, p in extent.owners if g in owners for part in rounds(a, p)]
        moved = tuple((g, torch.from_numpy(a).to(device), torch.from_numpy(p).to(device)) for g, a, p in parts)
        result.append(Place(tensor, dimension, extent.size, moved))
    return result


def rounds(atoms: Array, positions: Array) -> list[tuple[Array, Array]]:
    """The pairs in as few parts as it takes that no position stands twice in one."""
    order = np.argsort(positions, kind="stable")
    _, first, count = np.unique(positions[order], return_index=True, return_counts=True)
    occurrence = np.empty(len(positions), dtype=np.int64)
    occurrence[order] = np.arange(len(positions)) - np.repeat(first, count)
    return [(atoms[occurrence == n], positions[occurrence == n]) for n in range(int(occurrence.max()) + 1)]


@torch.no_grad()
def fold_(model: nn.Module, where: Sequence[Place], gates: Sequence[Tensor]) -> None:
    """Multiplies the gates (size,) into the parameters at these places: exact, and free at run time."""
    parameters = dict(model.named_parameters())
    for place in where:
        parameters[place.tensor].copy_(place.applied(parameters[place.tensor], gates))


class _Body(nn.Module):
    """Lets `functional_call` swap parameters of the user's model while any function runs on it, a training step for one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, batch: Batch) -> Tensor:
        with _flat_weights(self.model):
            return objective(self.model, batch)


class _Excite(nn.Module):
    """z (batch, size) -> what is added to the scores (batch, size), 0 at first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        narrow = max(2, size // _REDUCTION)
        self.norm, self.inner, self.outer = nn.LayerNorm(size), nn.Linear(size, narrow), nn.Linear(narrow, size)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, z: Tensor) -> Tensor:
        z = z.to(self.inner.weight.dtype)  # whatever the model computes in
        result: Tensor = self.outer(torch.relu(self.inner(self.norm(z))))
        return result


@contextmanager
def _flat_weights(model: nn.Module) -> Iterator[None]:
    """Recurrent layers compute with a list of their weights that swapping parameters doesn't reach (torch 2.14)."""
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    before = [module._flat_weights for module in recurrent]
    try:
        for module in recurrent:
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        yield
    finally:
        for module, weights in zip(recurrent, before, strict=True):
            module._flat_weights = weights


def _owned_by(found: Sequence[Place], groups: set[int]) -> list[Place]:
    narrowed = (Place(p.tensor, p.dimension, p.size, tuple(o for o in p.owners if o[0] in groups)) for p in found)
    return [place for place in narrowed if place.owners]


def _by_sample(model: nn.Module, found: Sequence[Place], groups: int, inputs: Inputs) -> set[int]:
    """The groups that can have gates by sample: all that reads them are plain layers, called as modules."""
    modules, ran = dict(model.named_modules()), set[str]()

    def note(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() > 1 and len(args[0]) == batch_size(inputs):
                ran.add(path)

        return hook

    with ExitStack() as stack, evaluating(model), torch.no_grad():
        for path, module in modules.items():
            if _plain(module):
                stack.callback(module.register_forward_pre_hook(note(path)).remove)
        call(model, inputs)
    names = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    good = {(f"{path}.weight", 1) for path in ran if names.count(id(modules[path].weight)) == 1}
    refused = {group for p in found if (p.tensor, p.dimension) not in good for group, _, _ in p.owners}
    return set(range(groups)) - refused


def _plain(module: nn.Module) -> bool:
    """Whose weight's dimension 1 is the channel dimension of what it reads."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return module.groups == 1
        case _:
            return isinstance(module, nn.Linear)


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _channel(module: nn.Module, x: Tensor) -> int:
    return x.dim() - 1 if isinstance(module, nn.Linear) else 1
