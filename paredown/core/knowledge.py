"""What a student may learn from a teacher: of its outputs, of the text that it writes, of its hidden layers; a config for each.

A loss of hidden layers is the mean over the pairs that it compares, so that a weight means the same for any number of pairs.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import pydantic

from paredown.core.effort import Effort
from paredown.core.errors import RecipeError
from paredown.core.fields import choice, count, instance, names, positive, within
from paredown.core.training import Training

Soft = Literal["auto", "soft_labels", "logit_mse", "standardized", "dkd", "multi_label", "regression", "embedding", "contrastive"]
Combine = Literal["mean", "confidence"]
Layers = Literal["all", "last"]
Relation = Literal["values", "queries", "keys"]

_FORBID = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class DKD:
    """Soft labels in two parts (`losses/dkd.py`): how sure the teacher is of the true class, and how it ranks the others. Labels
    are read. alpha, beta: weights of the two parts.
    """

    __pydantic_config__: ClassVar = _FORBID
    alpha: float = 1.0
    beta: float = 8.0
    kind: Literal["dkd"] = "dkd"

    def __post_init__(self) -> None:
        within("alpha", self.alpha, 0, 1e3)
        within("beta", self.beta, 0, 1e3)
        if self.alpha == 0 == self.beta:
            raise RecipeError("DKD needs a part", got="alpha=0, beta=0", remedy="leave one out for its default")


@dataclass(frozen=True)
class BoundedRegression:
    """The squared distance to the target at samples where the student isn't better than the teacher by a margin
    (`losses/regression.py`): for teachers that may be far off. Targets are read, and have the shape of the outputs.

    margin: in squared units of the target, summed over a sample.
    """

    __pydantic_config__: ClassVar = _FORBID
    margin: float = 0.0
    kind: Literal["bounded_regression"] = "bounded_regression"

    def __post_init__(self) -> None:
        within("margin", self.margin, 0, 1e12)


@dataclass(frozen=True)
class TokenLevel:
    """Soft labels token by token, of a language model (`losses/language.py`): of the outputs the first is compared, which must be
    logits (batch, sequence, vocabulary). The mean goes over the tokens that count.

    mask: an input, by its name or its position, (batch, sequence), 0 at tokens that don't count. padding: a token that doesn't.
    Without either all count.
    """

    __pydantic_config__: ClassVar = _FORBID
    mask: str | int | None = None
    padding: int | None = None
    kind: Literal["token_level"] = "token_level"

    def __post_init__(self) -> None:
        which_input("mask", self.mask)
        token("padding", self.padding)


@dataclass(frozen=True)
class SequenceLevel:
    """Text that the teacher writes (`losses/language.py`): it goes on from the first tokens of each sample, to the sample's
    length, and the student learns to tell the next token there. Outputs as for TokenLevel; tokens are the first input of whole
    numbers, (batch, sequence). Written once a sample, and remembered.

    prompt: tokens of the sample that stay. sampling: the temperature at which the teacher draws; None: it takes the most probable
    token. end: a token after which nothing counts. mask: an input, as for TokenLevel, which becomes 1 throughout.
    """

    __pydantic_config__: ClassVar = _FORBID
    prompt: int = 8
    sampling: float | None = None
    end: int | None = None
    mask: str | int | None = None
    kind: Literal["sequence_level"] = "sequence_level"

    def __post_init__(self) -> None:
        count("prompt", self.prompt)
        if self.sampling is not None:
            positive("sampling", self.sampling)
        token("end", self.end)
        which_input("mask", self.mask)


@dataclass(frozen=True)
class Hint:
    """The features themselves (FitNets, `losses/hint.py`). Of a student that was cut from the teacher, channel by kept channel;
    of any other, through a 1x1 adapter, which is trained along and thrown away.

    adapter: False compares channel by channel without one, which needs equal widths.
    """

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 1.0
    adapter: bool = True
    kind: Literal["hint"] = "hint"

    def __post_init__(self) -> None:
        positive("weight", self.weight)
        instance("adapter", self.adapter, bool)


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


@dataclass(frozen=True)
class Embedding:
    """The direction of the features at each position, by cosine (`losses/embedding.py`). Channels as for Hint."""

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 1.0
    kind: Literal["embedding"] = "embedding"

    def __post_init__(self) -> None:
        positive("weight", self.weight)


@dataclass(frozen=True)
class Contrastive:
    """Which sample of the batch is which (`losses/contrastive.py`), of features averaged over their positions; large batches are
    better. Channels as for Hint.

    temperature: of the softmax over the batch.
    """

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 0.8
    temperature: float = 0.1
    kind: Literal["contrastive"] = "contrastive"

    def __post_init__(self) -> None:
        positive("weight", self.weight)
        positive("temperature", self.temperature)


@dataclass(frozen=True)
class AttentionMaps:
    """Which tokens a transformer's attention heads look at, head by head (`losses/attention_maps.py`); as many heads in both.

    of: "scores", before the softmax (TinyBERT), or "distributions", after it (MiniLM). layers: "all" pairs, or the "last" one.
    """

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 1.0
    of: Literal["scores", "distributions"] = "scores"
    layers: Layers = "all"
    kind: Literal["attention_maps"] = "attention_maps"

    def __post_init__(self) -> None:
        positive("weight", self.weight)
        choice("of", self.of, Literal["scores", "distributions"])
        choice("layers", self.layers, Layers)


@dataclass(frozen=True)
class ValueRelations:
    """How alike an attention's values (queries, keys) are from token to token (`losses/value_relations.py`). Widths and numbers
    of heads may differ.

    of: any of "values" (MiniLM), "queries" and "keys" (MiniLMv2: all three). heads: into how many the width of each model is cut
    for it; None: its own heads, or, where the models have different numbers, the largest number not above both that divides both
    widths. layers: the "last" pair, or "all".
    """

    __pydantic_config__: ClassVar = _FORBID
    weight: float = 1.0
    of: tuple[Relation, ...] = ("values",)
    heads: int | None = None
    layers: Layers = "last"
    kind: Literal["value_relations"] = "value_relations"

    def __post_init__(self) -> None:
        positive("weight", self.weight)
        names("of", self.of)
        for each in self.of:
            choice("of", each, Relation)
        if not self.of:
            raise RecipeError("of must name something", got="()", remedy='write of=("values",)')
        object.__setattr__(self, "of", tuple(self.of))
        choice("layers", self.layers, Layers)
        if self.heads is not None:
            count("heads", self.heads)


OfOutput = DKD | BoundedRegression
OfText = TokenLevel | SequenceLevel
OfLayer = Hint | AttentionTransfer | Similarity | Relational | Embedding | Contrastive
OfAttention = AttentionMaps | ValueRelations
Feature = OfLayer | OfAttention


@dataclass(frozen=True)
class Blocks:
    """Before the pass from end to end each block of a student learns the output of the same block of the teacher, all blocks in
    one pass, without labels (`distillation/blockwise.py`). Blocks come from the teacher's graph.

    training: of that pass. inputs: what a block gets meanwhile: what the "student" hands it, whose error it can then make up
    for, or what the "teacher" hands its own. solve: layers are solved by least squares before.
    """

    __pydantic_config__: ClassVar = _FORBID
    training: Training = field(default_factory=lambda: Training(effort=Effort(1, "epochs")))
    inputs: Literal["student", "teacher"] = "student"
    solve: bool = True
    kind: Literal["blocks"] = "blocks"

    def __post_init__(self) -> None:
        instance("training", self.training, Training)
        self.training.require_names("blocks")
        choice("inputs", self.inputs, Literal["student", "teacher"])
        instance("solve", self.solve, bool)


def which_input(name: str, value: object) -> None:
    """An input of the model: its name, its position, or None."""
    known = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
    if value is not None and not known:
        raise RecipeError(
            f"{name} must be the name or the position of an input", got=repr(value), remedy=f'write {name}="attention_mask"'
        )


def token(name: str, value: object) -> None:
    """The number of a token, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise RecipeError(f"{name} must be the number of a token", got=repr(value), remedy=f"write {name}=0")


def checked_soft(value: object) -> None:
    """What is compared of the outputs. Raises RecipeError."""
    if value is not None and not isinstance(value, OfOutput | OfText):
        choice("soft", value, Soft)


def checked_features(value: object) -> tuple[Feature, ...]:
    """The features of a config. Raises RecipeError where it is no tuple of them, or names a kind twice."""
    kinds = get_args(Feature)
    if not isinstance(value, tuple | list) or not all(isinstance(each, kinds) for each in value):
        known = ", ".join(kind.__name__ for kind in kinds)
        raise RecipeError(f"features must be a tuple of {known}", got=repr(value), remedy="write features=(AttentionTransfer(),)")
    if len({type(each) for each in value}) < len(value):
        raise RecipeError("features must name each kind once", got=repr(value), remedy="give the one its weight")
    return tuple(value)
