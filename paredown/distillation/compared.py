"""Hidden layers of student and teacher, pair by pair: which are compared, through which adapter, and the losses of them.

Without pairs of the user's own: stage ends (see `pairing.py`), by lineage where the student descends from the teacher, where
kept channels are known and hints need no adapter; else as proposed from a batch, where hints go through a learned 1x1 adapter.
So do the other losses that compare channel by channel.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.core.knowledge import (
    AttentionTransfer,
    Contrastive,
    Embedding,
    Hint,
    OfAttention,
    OfLayer,
    Relational,
    Similarity,
)
from paredown.core.steps import Distill
from paredown.distillation.axes import channel_axes
from paredown.distillation.features import with_features
from paredown.distillation.graph_lineage import descent
from paredown.distillation.lineage import Pair
from paredown.distillation.losses.attention_transfer import attention_transfer_loss
from paredown.distillation.losses.contrastive import contrastive_loss
from paredown.distillation.losses.embedding import embedding_loss
from paredown.distillation.losses.hint import adapter, hint_loss
from paredown.distillation.losses.relational import angle_loss, distance_loss
from paredown.distillation.losses.similarity import similarity_loss
from paredown.distillation.pairing import lineage_ends, propose
from paredown.distillation.teacher import Asked
from paredown.task.batches import Inputs, evaluating, unfused

_log = logging.getLogger(__name__)

_CHANNEL_BY_CHANNEL = (Hint, Embedding, Contrastive)


@dataclass(frozen=True, eq=False)
class Compared:
    """A pair, and the map of the student's channels to the teacher's where a hint needs one.

    teacher_axis: where the teacher's channels lie; None: where the student's do.
    """

    pair: Pair
    adapter: nn.Module | None = None
    teacher_axis: int | None = None

    def laid_out(self, teacher: Tensor) -> Tensor:
        """The teacher's features with their channels where the student has its own."""
        return teacher if self.teacher_axis is None else teacher.movedim(self.teacher_axis, self.pair.axis)

    def alike(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both with channels that correspond: the student's through the adapter, of the teacher's those that were kept."""
        return student if self.adapter is None else self.adapter(student), self.pair.like(teacher)


def compare(config: Distill, teacher: Asked, student: nn.Module, inputs: Inputs) -> list[Compared]:
    """What the config's features compare; nothing where it names none. Neither model is touched.

    inputs: a batch. Pairs that are guessed are logged, for the user to look at.
    Raises RecipeError for pairs that name no module, TaskError where nothing can be paired.
    """
    features = [feature for feature in config.features if not isinstance(feature, OfAttention)]
    if not features:
        return []
    with unfused():
        pairs = _named(config.pairs, teacher.model, student, inputs) or _proposed(teacher.model, student, inputs)
    with evaluating(student), torch.no_grad(), unfused():
        _, ours = with_features(student, inputs, [pair.student for pair in pairs])
    _, theirs = teacher.features(inputs, [pair.teacher for pair in pairs])
    learns = any(isinstance(f, _CHANNEL_BY_CHANNEL) and (not isinstance(f, Hint) or f.adapter) for f in features)
    axes = [{} if all(pair.exact for pair in pairs) else channel_axes(model, inputs) for model in (student, teacher.model)]
    for pair in pairs:
        for name, known in zip((pair.student, pair.teacher), axes, strict=True):
            if not pair.exact and name not in known:
                raise TaskError(
                    "modules in pairs must give features (batch, channels, ...), under the first name that they have",
                    got=repr(name),
                    remedy="see named_modules() for the names, and propose_pairs for pairs",
                )
    return [
        Compared(pair)
        if pair.exact
        else _adapted(
            Pair(pair.student, pair.teacher, None, axes[0][pair.student], exact=False),
            axes[1][pair.teacher], ours[pair.student], theirs[pair.teacher], learns,
        )
        for pair in pairs
    ]  # fmt: skip


def _adapted(pair: Pair, teacher_axis: int, student: Tensor, teacher: Tensor, learns: bool) -> Compared:
    """learns: a loss compares channel by channel, so that channels that don't correspond need an adapter."""
    compared = Compared(pair, None, None if teacher_axis == pair.axis else teacher_axis)
    return replace(compared, adapter=adapter(student, compared.laid_out(teacher), axis=pair.axis)) if learns else compared


def propose_pairs(teacher: nn.Module, student: nn.Module, inputs: Inputs, *, count: int = 4) -> list[Pair]:
    """At most `count` pairs of layers at stage ends: by lineage, and where there is none as `pairing.py` proposes.

    inputs: a batch; for models of several inputs a tuple or a dict. Each pair has `student` and `teacher`, names of modules, as
    `Distill(pairs=...)` takes them. Raises TaskError where nothing can be paired.
    """
    try:
        pairs = lineage_ends(teacher, student, inputs, count=count)
    except TaskError:
        pairs = []
    return pairs or propose(teacher, student, inputs, count=count)


def _proposed(teacher: nn.Module, student: nn.Module, inputs: Inputs) -> list[Pair]:
    pairs = propose_pairs(teacher, student, inputs)
    if not all(pair.exact for pair in pairs):
        _log.info("hidden layers compared, student <- teacher: %s (Distill(pairs=...) names others)", "; ".join(map(str, pairs)))
    return pairs


@contextmanager
def attached(student: nn.Module, compared: Sequence[Compared]) -> Iterator[None]:
    """The adapters' weights stand among the student's parameters, so that they are trained with it; gone afterwards."""
    weights = [p for each in compared if each.adapter is not None for p in each.adapter.parameters()]
    names = [f"_paredown_adapter_{i}" for i in range(len(weights))]
    for name, weight in zip(names, weights, strict=True):
        student.register_parameter(name, weight)
    try:
        yield
    finally:
        for name in names:
            del student._parameters[name]


def feature_loss(
    feature: OfLayer, compared: Sequence[Compared], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> Tensor:
    """The mean over the pairs. ours, theirs: features by module name. Raises TaskError where they don't fit the loss."""
    return torch.stack([_loss(feature, c, ours[c.pair.student], theirs[c.pair.teacher]) for c in compared]).mean()


def _loss(feature: OfLayer, compared: Compared, student: Tensor, teacher: Tensor) -> Tensor:
    axis, teacher = compared.pair.axis, compared.laid_out(teacher)
    match feature:
        case Hint():
            own = compared if feature.adapter else replace(compared, adapter=None)
            return hint_loss(*own.alike(student, teacher), axis=axis)
        case Embedding():
            return embedding_loss(*compared.alike(student, teacher), axis=axis)
        case Contrastive():
            s, t = (_pooled(x, axis) for x in compared.alike(student, teacher))
            return contrastive_loss(s, t, feature.temperature)
        case AttentionTransfer():
            if min(student.dim(), teacher.dim()) < 3:
                raise TaskError(
                    "attention transfer needs features with positions, (batch, channels, *space)",
                    got=f"{tuple(student.shape)} of {compared.pair.student}",
                    remedy="name other modules in pairs=, or use Similarity or Relational",
                )
            return attention_transfer_loss(student.movedim(axis, 1), teacher.movedim(axis, 1))
        case Similarity():
            return similarity_loss(student, teacher)
        case Relational():
            s, t = (_pooled(x, axis) for x in (student, teacher))
            distances = distance_loss(s, t)
            return distances + feature.angle * angle_loss(s, t) if feature.angle > 0 else distances


def _pooled(features: Tensor, axis: int) -> Tensor:
    """(batch, channels): the mean over the positions."""
    return features.movedim(axis, 1).flatten(2).mean(2) if features.dim() > 2 else features


def _named(pairs: Sequence[tuple[str, str]], teacher: nn.Module, student: nn.Module, inputs: Inputs) -> list[Pair]:
    """The user's pairs, with kept channels where lineage knows them. A block of a graph may be named as in the teacher."""
    if not pairs:
        return []
    try:
        descended = descent(teacher, student, inputs)
    except TaskError:
        descended = []
    known = {pair.teacher: pair for pair in descended} | {pair.student: pair for pair in descended}
    exact = [known.get(ours) for ours, _ in pairs]
    return [
        pair if pair is not None and pair.teacher == theirs else Pair(ours, theirs, None, 1, exact=False)
        for pair, (ours, theirs) in zip(exact, pairs, strict=True)
    ]
