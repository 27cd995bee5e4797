"""Attentions of student and teacher, pair by pair, and the losses of them.

Without pairs of the user's own: attentions of the same name where the student descends from the teacher. Else evenly over the
depth (TinyBERT, arXiv:1909.10351, section 4.1: g(m) = m N / M): the last of M with the last of N.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paredown.core.errors import TaskError
from paredown.core.knowledge import AttentionMaps, OfAttention, Relation, ValueRelations
from paredown.core.steps import Distill
from paredown.distillation.attention import HIDDEN, Attention, attention_modules
from paredown.distillation.lineage import lineage
from paredown.distillation.losses.attention_maps import attention_loss, attention_score_loss
from paredown.distillation.losses.value_relations import value_relation_loss
from paredown.task.batches import Inputs


@dataclass(frozen=True)
class Attended:
    """The places of two attentions in the order in which their models run them."""

    student: int
    teacher: int


def attend(config: Distill, teacher: nn.Module, student: nn.Module, inputs: Inputs) -> list[Attended]:
    """What the config's attention losses compare; nothing where it names none. Neither model is touched.

    inputs: a batch. Raises TaskError where a model, or a module that `pairs` names, has no attention.
    """
    if not any(isinstance(feature, OfAttention) for feature in config.features):
        return []
    ours, theirs = attention_modules(student, inputs), attention_modules(teacher, inputs)
    for names, whose in ((ours, "student"), (theirs, "teacher")):
        if not names:
            raise TaskError(
                "attention maps and value relations need attentions in both models",
                got=f"none in the {whose}",
                remedy="compare other features, as Hint or Similarity",
            )
    if config.pairs:
        return [pair for names in config.pairs for pair in _named(names, ours, theirs)]
    return _by_lineage(teacher, student, ours, theirs) or [
        Attended(i, max(0, round((i + 1) * len(theirs) / len(ours)) - 1)) for i in range(len(ours))
    ]


def _named(names: tuple[str, str], ours: Sequence[str], theirs: Sequence[str]) -> list[Attended]:
    """The attentions inside of two modules, in order."""
    inside = [
        [i for i, at in enumerate(found) if f"{at}.".startswith(f"{name}.")]
        for name, found in zip(names, (ours, theirs), strict=True)
    ]
    if not inside[0] or len(inside[0]) != len(inside[1]):
        raise TaskError(
            "modules in pairs must hold equally many attentions, and at least one",
            got=f"{len(inside[0])} in {names[0]}, {len(inside[1])} in {names[1]}",
            remedy="name the attention modules themselves",
        )
    return [Attended(s, t) for s, t in zip(*inside, strict=True)]


def _by_lineage(teacher: nn.Module, student: nn.Module, ours: Sequence[str], theirs: Sequence[str]) -> list[Attended]:
    try:
        lineage(teacher, student)
    except TaskError:
        return []
    places = {key: place for place, key in enumerate(_numbered(theirs))}
    return [Attended(place, places[key]) for place, key in enumerate(_numbered(ours)) if key in places]


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Which attention of its module each is."""
    return [(name, names[:i].count(name)) for i, name in enumerate(names)]


def attended_loss(
    feature: OfAttention, pairs: Sequence[Attended], ours: Sequence[Attention], theirs: Sequence[Attention]
) -> Tensor:
    """The mean over the pairs that the feature is about. ours, theirs: of one pass. Raises TaskError as the losses do."""
    chosen = pairs[-1:] if feature.layers == "last" else pairs
    if max(pair.student for pair in chosen) >= len(ours):
        raise TaskError(
            "a student must run its attentions in training as in evaluation",
            got=f"{len(ours)} attentions",
            remedy="compare other features, as Hint or Similarity",
        )
    return torch.stack([_loss(feature, ours[pair.student], theirs[pair.teacher]) for pair in chosen]).mean()


def _loss(feature: OfAttention, student: Attention, teacher: Attention) -> Tensor:
    tokens = teacher.tokens()
    match feature:
        case AttentionMaps():
            s, t = student.scores(), teacher.scores()
            square = tokens if tokens is not None and t.shape[2] == t.shape[3] else None
            if feature.of == "distributions":
                return attention_loss(s.log_softmax(-1), t.log_softmax(-1), square)
            if s.shape != t.shape:
                return attention_score_loss(s, t)  # raises
            hidden = t <= HIDDEN
            return attention_score_loss(s.masked_fill(hidden, 0), t.masked_fill(hidden, 0), square)
        case ValueRelations():
            return torch.stack([_relations(feature, of, student, teacher, tokens) for of in feature.of]).mean()


def _relations(feature: ValueRelations, of: Relation, student: Attention, teacher: Attention, tokens: Tensor | None) -> Tensor:
    s, t = _vectors(student, of), _vectors(teacher, of)
    heads = feature.heads
    if heads is None and s.shape[1] != t.shape[1]:
        heads = common_heads(s, t)
    fits = tokens is not None and tokens.shape == (len(s), s.shape[2])  # of queries over another sequence nothing is known
    return value_relation_loss(s, t, tokens if fits else None, heads=heads)


def common_heads(student: Tensor, teacher: Tensor) -> int:
    """The largest number of heads, not above those of either, that divides the width of all heads together in both."""
    width = math.gcd(*(x.shape[1] * x.shape[3] for x in (student, teacher)))
    return next(n for n in range(min(student.shape[1], teacher.shape[1]), 0, -1) if width % n == 0)


def _vectors(attention: Attention, of: Relation) -> Tensor:
    found = {"values": attention.values, "queries": attention.queries, "keys": attention.keys}[of]
    if found is None:
        raise TaskError(
            f"relations of {of} need an attention whose {of} can be found", got="scores from elsewhere",
            remedy='write of=("values",), or call scaled_dot_product_attention in the model',
        )  # fmt: skip
    return found
